package quire

import "quire/clients/go/quirev1"

// JSONSchema holds an output to JSON that a schema accepts, for SamplingOptions.Grammar.
func JSONSchema(schema string) *quirev1.Grammar {
	return &quirev1.Grammar{Kind: quirev1.GrammarKind_GRAMMAR_KIND_JSON_SCHEMA, Text: schema}
}

// Regex holds an output to a regular expression in Rust's syntax: all of it matches.
func Regex(pattern string) *quirev1.Grammar {
	return &quirev1.Grammar{Kind: quirev1.GrammarKind_GRAMMAR_KIND_REGEX, Text: pattern}
}

// Choice holds an output to be one of some texts.
func Choice(texts ...string) *quirev1.Grammar {
	return &quirev1.Grammar{Kind: quirev1.GrammarKind_GRAMMAR_KIND_CHOICE, Choices: texts}
}

// Lark holds an output to a context-free grammar in llguidance's Lark: it is the rule "start".
func Lark(grammar string) *quirev1.Grammar {
	return &quirev1.Grammar{Kind: quirev1.GrammarKind_GRAMMAR_KIND_LARK, Text: grammar}
}
