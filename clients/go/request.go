package quire

import "quire/clients/go/quirev1"

// Request is a prompt and how to continue it. Make one with Text, Tokens or Chat, and set the rest
// of its fields as needed.
type Request struct {
	// Sampling says how to choose tokens; nil takes the model's defaults. The setters of its
	// optional fields are proto.Float32, proto.Uint32 and proto.Uint64.
	Sampling *quirev1.SamplingOptions
	// Model may be left empty where one is served.
	Model string
	// Priority: lower is sooner; 0 is normal.
	Priority int32
	// CacheSalt: cached prefixes are shared among requests of the same salt.
	CacheSalt string
	// ReturnPromptTokenIDs: the first sample says the prompt's tokens, as it does where the prompt's
	// logprobs are asked for.
	ReturnPromptTokenIDs bool

	setPrompt func(*quirev1.GenerateRequest)
}

// Text is continued.
func Text(text string) Request {
	return Request{setPrompt: func(r *quirev1.GenerateRequest) {
		r.Prompt = &quirev1.GenerateRequest_Text{Text: text}
	}}
}

// Tokens are continued as they are.
func Tokens(ids []uint32) Request {
	return Request{setPrompt: func(r *quirev1.GenerateRequest) {
		r.Prompt = &quirev1.GenerateRequest_Tokens{Tokens: &quirev1.TokenIds{Ids: ids}}
	}}
}

// Chat is answered; messages are the oldest first.
func Chat(messages ...*quirev1.ChatMessage) Request {
	return ChatWith(&quirev1.ChatPrompt{Messages: messages})
}

// ChatWith is answered, with tools and what else a conversation can have.
func ChatWith(chat *quirev1.ChatPrompt) Request {
	return Request{setPrompt: func(r *quirev1.GenerateRequest) {
		r.Prompt = &quirev1.GenerateRequest_Chat{Chat: chat}
	}}
}

// System tells the model what it is.
func System(content string) *quirev1.ChatMessage {
	return &quirev1.ChatMessage{Role: "system", Content: content}
}

// User asks.
func User(content string) *quirev1.ChatMessage {
	return &quirev1.ChatMessage{Role: "user", Content: content}
}

// Assistant is what the model answered before.
func Assistant(content string) *quirev1.ChatMessage {
	return &quirev1.ChatMessage{Role: "assistant", Content: content}
}

func (r Request) message(whole bool) *quirev1.GenerateRequest {
	scores := r.Sampling != nil && r.Sampling.NumPromptLogprobs != nil
	message := &quirev1.GenerateRequest{
		Model:                r.Model,
		Sampling:             r.Sampling,
		Priority:             r.Priority,
		CacheSalt:            r.CacheSalt,
		Whole:                whole,
		ReturnPromptTokenIds: r.ReturnPromptTokenIDs || scores,
	}
	if r.setPrompt != nil {
		r.setPrompt(message)
	}
	return message
}
