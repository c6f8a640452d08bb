// Renders conversations by Go templates as Ollama does: reads one JSON object a line,
// {"template": …, "messages": [{"role": …, "content": …}, …]}, and writes {"text": …} or {"error": …} for each.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"text/template"
	"time"
)

type toolCall struct {
	Function struct {
		Name      string         `json:"name"`
		Arguments map[string]any `json:"arguments"`
	} `json:"function"`
}

type message struct {
	Role      string     `json:"role"`
	Content   string     `json:"content"`
	ToolCalls []toolCall `json:"tool_calls"`
}

type request struct {
	Template string    `json:"template"`
	Messages []message `json:"messages"`
}

type answer struct {
	Text  string `json:"text"`
	Error string `json:"error,omitempty"`
}

var functions = template.FuncMap{
	"json": func(value any) string {
		written, _ := json.Marshal(value)
		return string(written)
	},
	"currentDate":   func(...string) string { return time.Now().Format("2006-01-02") },
	"yesterdayDate": func(...string) string { return time.Now().AddDate(0, 0, -1).Format("2006-01-02") },
}

// collate joins neighbours of one role, but for tools' answers, and gathers what system messages say.
func collate(messages []message) (string, []*message) {
	system, joined := []string{}, []*message{}
	for index := range messages {
		next := messages[index]
		if next.Role == "system" {
			system = append(system, next.Content)
		}
		if last := len(joined) - 1; last >= 0 && joined[last].Role == next.Role && next.Role != "tool" {
			joined[last].Content += "\n\n" + next.Content
			continue
		}
		joined = append(joined, &next)
	}
	return strings.Join(system, "\n\n"), joined
}

// render is for templates with .Messages, and for those that name no answer, to which Ollama adds {{ .Response }}:
// these run once for every turn.
func render(asked request) (string, error) {
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(asked.Template)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	system, messages := collate(asked.Messages)
	if strings.Contains(asked.Template, ".Messages") {
		values := map[string]any{"System": system, "Messages": messages, "Tools": nil, "Response": ""}
		err = parsed.Execute(&text, values)
		return text.String(), err
	}
	turn := map[string]any{"System": "", "Prompt": "", "Response": ""}
	write := func() {
		if err == nil {
			err = parsed.Execute(&text, turn)
		}
		text.WriteString(turn["Response"].(string))
		turn = map[string]any{"System": "", "Prompt": "", "Response": ""}
	}
	for _, next := range messages {
		switch next.Role {
		case "system":
			if turn["Prompt"] != "" || turn["Response"] != "" {
				write()
			}
			turn["System"] = next.Content
		case "user":
			if turn["Response"] != "" {
				write()
			}
			turn["Prompt"] = next.Content
		case "assistant":
			turn["Response"] = next.Content
		}
	}
	write()
	return text.String(), err
}

func main() {
	lines := bufio.NewReaderSize(os.Stdin, 1<<20)
	written := json.NewEncoder(os.Stdout)
	written.SetEscapeHTML(false)
	decoder := json.NewDecoder(lines)
	for decoder.More() {
		var asked request
		if err := decoder.Decode(&asked); err != nil {
			panic(err)
		}
		text, err := render(asked)
		if err != nil {
			written.Encode(answer{Error: err.Error()})
		} else {
			written.Encode(answer{Text: text})
		}
	}
}
