"""What of a plan is only for chats: what decides their tokens, and the files of the tokenizer that they change."""

import shlex

from lit_gpt.errors import UserError
from lit_gpt.tokenizer.chat_files import chat_files, with_default_system
from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.shipped_templates import missing_tokens, template_source
from lit_gpt.tokenizer.special_tokens import CONTROL_NAME
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.prepare.chat.conversation import ChatRecipe
from utils.prepare.options import PrepareOptions
from utils.prepare.progress import say


def plan_chats(options: PrepareOptions, tokenizer: Tokenizer) -> tuple[ChatRecipe, dict[str, bytes]]:
    """A UserError or a DataError for whatever is wrong in the options or the template."""
    if not options.padding:
        raise UserError("--padding false would cut conversations where a row is full; leave it out for chats")
    source = template_source(options.template, tokenizer)
    if missing := missing_tokens(source, tokenizer):
        mend = shlex.join(name for name in missing if CONTROL_NAME.fullmatch(name))
        mend = f" (--add_tokens {mend} makes tokens of them)" if mend else ""
        say(f"warning: what the chat template writes is text to this tokenizer, no token: {', '.join(missing)}{mend}")
    template = ChatTemplate(tokenizer, source)
    if template.end_text:
        say(
            f"warning: an answer ends with the text {template.end_text!r}, and no token: who generates has to stop "
            "there, as lit_gpt/chat and the Modelfile do; the template impruver ends answers with the tokenizer's own"
        )
    elif template.end_of_turn is None:
        say(
            "warning: the chat template writes nothing after an answer, so that no end is trained: who generates has "
            "to stop where the next message would begin"
        )
    recipe = ChatRecipe(source, options.targets, options.too_long, options.system)
    return recipe, chat_files(tokenizer, with_default_system(source, options.system))
