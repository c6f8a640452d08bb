// Writes what llama.cpp's server sends a model for a conversation, as text and as token ids.
//
// llama-chats MODEL.gguf < requests > answers, a JSON object a line. A request has `messages` and, where there are any,
// `tools` in OpenAI's form, and `template` where it is not the model's own. An answer has `text` and `ids`, or
// `error`. Of the model only the vocabulary and the template are read.

#include "chat.h"
#include "common.h"
#include "json.h"
#include "llama.h"

#include <cstdio>
#include <iostream>
#include <map>
#include <string>

static common_json answer(const llama_model * model, const common_json & request) {
    static std::map<std::string, common_chat_templates_ptr> known;
    const std::string source = request.value("template", std::string());
    if (known.find(source) == known.end()) {
        known[source] = common_chat_templates_init(model, source);
    }
    const auto * templates = known[source].get();

    // as tools/server fills them in where a request says nothing else
    common_chat_templates_inputs inputs;
    inputs.messages = common_chat_msgs_parse_oaicompat(request.at("messages"));
    if (request.contains("tools") && !request.at("tools").is_null()) {
        inputs.tools = common_chat_tools_parse_oaicompat(request.at("tools"));
    }
    inputs.parallel_tool_calls = common_chat_templates_get_caps(templates)["supports_parallel_tool_calls"];
    inputs.reasoning_format = COMMON_REASONING_FORMAT_DEEPSEEK;
    inputs.enable_thinking = common_chat_templates_support_enable_thinking(templates);
    const std::string text = common_chat_templates_apply(templates, inputs).prompt;

    common_json found = common_json::object();
    found["text"] = text;
    found["ids"] = common_json::array();
    for (const llama_token id : common_tokenize(llama_model_get_vocab(model), text, true, true)) {
        found["ids"].push_back((int64_t) id);
    }
    return found;
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: llama-chats MODEL.gguf < requests > answers\n");
        return 1;
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    llama_model * model = llama_model_load_from_file(argv[1], params);
    if (model == nullptr) {
        fprintf(stderr, "%s: cannot be read\n", argv[1]);
        return 1;
    }
    for (std::string line; std::getline(std::cin, line);) {
        common_json found = common_json::object();
        try {
            found = answer(model, common_json::parse(line));
        } catch (const std::exception & e) {  // as a template refuses a conversation
            found = common_json::object();
            found["error"] = std::string(e.what());
        }
        std::cout << found.dump_safe() << "\n";
    }
    llama_model_free(model);
    return 0;
}
