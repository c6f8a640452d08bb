"""Whether a tokenizer has the tokens that a chat template writes: where answers end, and about tools."""

from collections.abc import Iterable

from lit_gpt.errors import UserError
from lit_gpt.tokenizer.chat_template import ChatTemplate, strings_of
from lit_gpt.tokenizer.shipped_templates import missing_tokens
from lit_gpt.tokenizer.special_tokens import CONTROL_NAME
from lit_gpt.tokenizer.tokenizer import Tokenizer
from utils.prepare.chat.conversation import Conversation
from utils.prepare.chat.converters import make_converter
from utils.prepare.check import first_works
from utils.prepare.plan import PreparePlan
from utils.prepare.records import parse_records


def template_problems(plan: PreparePlan) -> list[str]:
    """What of the template the model could not learn, as the tokenizer makes several tokens of it."""
    if plan.recipe.chat is None:
        return []
    tokenizer = Tokenizer(plan.recipe.checkpoint_dir)
    template = ChatTemplate(tokenizer, plan.recipe.chat.template)
    lacking = set(missing_tokens(plan.recipe.chat.template, tokenizer))
    problems = []
    if template.end_text:
        problems.append(
            f"the template ends an answer with {template.end_text!r}, which is no token of this tokenizer: name it in "
            "add_tokens, or take a template whose end it has"
        )
    if unknown := sorted(lacking & _written_for_tools(plan, template)):
        problems.append(
            f"the template writes {', '.join(unknown)} for tools, which the data have: no tokens of this tokenizer; "
            "name them in add_tokens, or take another template"
        )
    return problems


def _written_for_tools(plan: PreparePlan, template: ChatTemplate) -> set[str]:
    """What looks like special tokens in the first chat of each source that has tools, beside what its messages hold."""
    found = set()
    for conversation in _with_tools(plan):
        try:
            text = template.render(conversation.messages, conversation.tools, add_generation_prompt=False)
        except UserError:  # as the rows say that it refuses
            continue
        said = strings_of([conversation.messages, conversation.tools])
        found |= set(CONTROL_NAME.findall(text)).difference(*map(CONTROL_NAME.findall, said))
    return found


def _with_tools(plan: PreparePlan) -> Iterable[Conversation]:
    for source in plan.sources:
        convert = make_converter(source.converter) if source.converter else None
        works = (work for work in first_works(source, plan) if work.converter) if convert else ()
        records = (record for work in works for record in parse_records(work.block)[0])
        made = (item for values, at in records for item in convert(values, at))
        chats = (item for item in made if isinstance(item, Conversation))
        first = next((chat for chat in chats if chat.tools or any("tool_calls" in m for m in chat.messages)), None)
        if first is not None:
            yield first
