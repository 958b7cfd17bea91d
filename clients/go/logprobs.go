package quire

import (
	"encoding/binary"

	"quire/clients/go/quirev1"
)

// Logprob of a token.
type Logprob struct {
	TokenID uint32
	// Value is the natural logarithm of its probability.
	Value float32
	// Rank is 1 for the likeliest token of the vocabulary.
	Rank int
}

// TokenLogprobs are those of a token that was chosen, and of the likeliest in its place.
type TokenLogprobs struct {
	Chosen Logprob
	// Top: as many as were asked for, the likeliest first.
	Top []Logprob
}

// Logprobs reads columns, one row per token of tokenIDs.
func Logprobs(columns *quirev1.LogprobColumns, tokenIDs []uint32) []TokenLogprobs {
	values, ranks := float32s(columns.GetLogprob()), int32s(columns.GetRank())
	numTop, topIDs := int32s(columns.GetNumTop()), int32s(columns.GetTopTokenId())
	topValues := float32s(columns.GetTopLogprob())
	rows := make([]TokenLogprobs, len(values))
	next := 0
	for i := range rows {
		rows[i].Chosen = Logprob{TokenID: tokenIDs[i], Value: values[i], Rank: int(ranks[i])}
		for rank := 1; rank <= int(numTop[i]); rank++ {
			top := Logprob{TokenID: uint32(topIDs[next]), Value: topValues[next], Rank: rank}
			rows[i].Top = append(rows[i].Top, top)
			next++
		}
	}
	return rows
}

func int32s(column []byte) []int32 {
	values := make([]int32, len(column)/4)
	for i := range values {
		values[i] = int32(binary.LittleEndian.Uint32(column[4*i:]))
	}
	return values
}
