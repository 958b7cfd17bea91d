package quire

import (
	"context"
	"math/rand"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	firstBackoff    = 50 * time.Millisecond
	lastBackoff     = 2 * time.Second
	pushbackTrailer = "grpc-retry-pushback-ms"
)

// attempts of one call. It is tried again only while nothing of its answer has been seen, and only
// if that can help: the router says so, or nobody answers.
type attempts struct {
	left    int
	backoff time.Duration
	// final: something of the answer has been seen.
	final bool
}

// wait until the next attempt; false: there is none.
func (a *attempts) wait(ctx context.Context, err error, trailer metadata.MD) bool {
	pushback, retry := pushbackOf(err, trailer)
	if !retry || a.final || a.left == 0 {
		return false
	}
	a.left--
	if a.backoff == 0 {
		a.backoff = firstBackoff
	}
	pause := a.backoff
	if pushback > pause {
		pause = pushback
	}
	// Clients that were refused together shall not come back together.
	pause += time.Duration(rand.Float64() * 0.25 * float64(pause))
	if a.backoff *= 2; a.backoff > lastBackoff {
		a.backoff = lastBackoff
	}
	if deadline, limited := ctx.Deadline(); limited && time.Until(deadline) <= pause {
		return false
	}
	select {
	case <-time.After(pause):
		return true
	case <-ctx.Done():
		return false
	}
}

// pushbackOf says after how long another attempt may help, and whether it may at all.
//
// Unavailable may be gRPC's own: nobody listens yet. ResourceExhausted may be too (a message is too
// large, for ever), so only the router's word makes it worth another attempt. A negative number is
// that word for "do not".
func pushbackOf(err error, trailer metadata.MD) (time.Duration, bool) {
	if values := trailer.Get(pushbackTrailer); len(values) > 0 {
		ms, err := strconv.Atoi(values[0])
		return time.Duration(ms) * time.Millisecond, err == nil && ms >= 0
	}
	return 0, status.Code(err) == codes.Unavailable
}
