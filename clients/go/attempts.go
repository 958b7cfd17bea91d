package quire

import (
	"context"
	"fmt"
	"math/rand"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
)

const (
	firstBackoff    = 50 * time.Millisecond
	lastBackoff     = 2 * time.Second
	pushbackTrailer = "grpc-retry-pushback-ms"
	// longestPushback: who is told to come back later than this decides for themselves whether to.
	longestPushback = time.Minute
	// strangerWait: where nobody has ever answered, nobody is waited for longer.
	strangerWait = 2 * time.Second
)

// acquaintance is what a client knows of its router.
type acquaintance struct {
	target string
	// waits: it is waited for until it is there and ready, however many attempts that takes.
	waits bool
	// met: somebody has answered.
	met atomic.Bool
}

// attempts of one call. It is tried again only while nothing of its answer has been seen, and only
// if that can help: the router says so, or nobody answers. Where nobody has ever answered, the
// address is more likely wrong than the router away: that is told within seconds.
type attempts struct {
	router  *acquaintance
	began   time.Time
	left    int
	backoff time.Duration
	// final: something of the answer has been seen.
	final bool
}

func (c *Client) attempts() attempts {
	return attempts{router: c.router, began: time.Now(), left: c.maxRetries}
}

// succeeded: somebody has answered.
func (a *attempts) succeeded() {
	a.router.met.Store(true)
}

// wait until the next attempt; false: there is none, and err is what the caller gets.
func (a *attempts) wait(ctx context.Context, err *Error) bool {
	if a.final || !err.silent {
		a.router.met.Store(true)
	}
	isStranger := !a.router.met.Load() && !a.router.waits
	if a.worthWaiting(ctx, err, isStranger) {
		return true
	}
	if err.silent && ctx.Err() == nil {
		err.Message = fmt.Sprintf("no answer from the router at %s: %s", a.router.target, err.Message)
		if isStranger {
			err.Message += "; WithWaitForReady waits for it"
		}
	}
	return false
}

func (a *attempts) worthWaiting(ctx context.Context, err *Error, isStranger bool) bool {
	counts := !(a.router.waits && err.Code == codes.Unavailable)
	if !err.Retryable || a.final || (counts && a.left == 0) || err.RetryAfter > longestPushback {
		return false
	}
	if counts {
		a.left--
	}
	if a.backoff == 0 {
		a.backoff = firstBackoff
	}
	pause := a.backoff
	if err.RetryAfter > pause {
		pause = err.RetryAfter
	}
	// Clients that were refused together shall not come back together.
	pause += time.Duration(rand.Float64() * 0.25 * float64(pause))
	if a.backoff *= 2; a.backoff > lastBackoff {
		a.backoff = lastBackoff
	}
	if isStranger && time.Since(a.began)+pause >= strangerWait {
		return false
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

// pushbackOf says after how long another attempt may help, and whether it may at all, of an error
// without a detail.
//
// Unavailable may be gRPC's own: nobody listens yet. ResourceExhausted may be too (a message is too
// large, for ever), so only the router's word makes it worth another attempt. A negative number is
// that word for "do not".
func pushbackOf(code codes.Code, trailer metadata.MD) (time.Duration, bool) {
	if values := trailer.Get(pushbackTrailer); len(values) > 0 {
		ms, err := strconv.Atoi(values[0])
		if err != nil || ms < 0 {
			return 0, false
		}
		return time.Duration(ms) * time.Millisecond, true
	}
	return 0, code == codes.Unavailable
}
