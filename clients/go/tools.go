package quire

import (
	"google.golang.org/protobuf/proto"

	"quire/clients/go/quirev1"
)

// Function is a tool for ChatPrompt.Tools; parameters is the JSON schema of its arguments, or empty
// for any object.
func Function(name, description, parameters string) *quirev1.Tool {
	tool := &quirev1.Tool{Name: name, Parameters: parameters}
	if description != "" {
		tool.Description = proto.String(description)
	}
	return tool
}

// CallNone forbids calls, for ChatPrompt.ToolChoice.
func CallNone() *quirev1.ToolChoice {
	return &quirev1.ToolChoice{Mode: quirev1.ToolChoiceMode_TOOL_CHOICE_MODE_NONE}
}

// CallAny makes the model call at least one tool.
func CallAny() *quirev1.ToolChoice {
	return &quirev1.ToolChoice{Mode: quirev1.ToolChoiceMode_TOOL_CHOICE_MODE_REQUIRED}
}

// CallNamed makes the model call one certain tool.
func CallNamed(name string) *quirev1.ToolChoice {
	return &quirev1.ToolChoice{Mode: quirev1.ToolChoiceMode_TOOL_CHOICE_MODE_NAMED, Name: name}
}

// ToolResult is the turn that answers a call.
func ToolResult(callID, content string) *quirev1.ChatMessage {
	return &quirev1.ChatMessage{Role: "tool", ToolCallId: proto.String(callID), Content: content}
}

// addCalls puts news of calls together.
func addCalls(calls []*quirev1.ToolCall, deltas []*quirev1.ToolCallDelta) []*quirev1.ToolCall {
	for _, delta := range deltas {
		if int(delta.GetIndex()) == len(calls) {
			calls = append(calls, &quirev1.ToolCall{Id: delta.GetId(), Name: delta.GetName()})
		}
		calls[delta.GetIndex()].Arguments += delta.GetArguments()
	}
	return calls
}
