package quire

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestOnlyTheRoutersWordOrSilenceIsWorthAnotherAttempt(t *testing.T) {
	for _, each := range []struct {
		code     codes.Code
		pushback string
		pause    time.Duration
		retry    bool
	}{
		{codes.Unavailable, "", 0, true},
		{codes.Unavailable, "250", 250 * time.Millisecond, true},
		{codes.Unavailable, "-1", 0, false},
		{codes.Unavailable, "soon", 0, false},
		{codes.ResourceExhausted, "1000", time.Second, true},
		{codes.ResourceExhausted, "", 0, false},
		{codes.InvalidArgument, "", 0, false},
		{codes.Internal, "", 0, false},
		{codes.DeadlineExceeded, "", 0, false},
		{codes.Canceled, "", 0, false},
	} {
		trailer := metadata.MD{}
		if each.pushback != "" {
			trailer.Set(pushbackTrailer, each.pushback)
		}
		err := errorOf(status.Error(each.code, "not now"), trailer)
		if err.RetryAfter != each.pause || err.Retryable != each.retry {
			t.Errorf("%v %q: %v, %v", each.code, each.pushback, err.RetryAfter, err.Retryable)
		}
		silent := each.code == codes.Unavailable && each.pushback == ""
		if err.silent != silent || status.Code(err) != each.code {
			t.Errorf("%v %q: %+v", each.code, each.pushback, err)
		}
	}
}

func TestAttemptsEnd(t *testing.T) {
	notNow := func(pushback string) *Error {
		return errorOf(status.Error(codes.Unavailable, "not now"), metadata.Pairs(pushbackTrailer, pushback))
	}
	of := func(left int) *attempts {
		return &attempts{router: &acquaintance{}, began: time.Now(), left: left}
	}
	ctx, cancel := context.WithCancel(context.Background())
	few := of(2)
	if !few.wait(ctx, notNow("0")) || !few.wait(ctx, notNow("0")) || few.wait(ctx, notNow("0")) {
		t.Error("two attempts are left, and not two were made")
	}
	final := of(2)
	final.final = true
	if final.wait(ctx, notNow("0")) {
		t.Error("tried again though something had come")
	}
	soon, end := context.WithTimeout(ctx, 10*time.Millisecond)
	defer end()
	if of(2).wait(soon, notNow("60000")) {
		t.Error("waits beyond the deadline")
	}
	if of(2).wait(ctx, notNow("60001")) {
		t.Error("waits for more than a minute")
	}
	cancel()
	if of(2).wait(ctx, notNow("60000")) {
		t.Error("tried again for nobody")
	}
}

func TestAStrangerIsNotWaitedForLong(t *testing.T) {
	ctx, longAgo := context.Background(), time.Now().Add(-strangerWait)
	silence := func() *Error { return errorOf(status.Error(codes.Unavailable, "refused"), nil) }
	stranger := attempts{router: &acquaintance{target: "x:1"}, began: longAgo, left: 9}
	err := silence()
	if stranger.wait(ctx, err) {
		t.Error("nobody is waited for where nobody has ever answered")
	}
	const told = "no answer from the router at x:1: refused; WithWaitForReady waits for it"
	if err.Message != told {
		t.Error(err)
	}
	patient := attempts{router: &acquaintance{waits: true}, began: longAgo, left: 0}
	if !patient.wait(ctx, silence()) {
		t.Error("a stranger is not waited for though that was asked for")
	}
	busy := errorOf(status.Error(codes.ResourceExhausted, "x"), metadata.Pairs(pushbackTrailer, "0"))
	if patient.wait(ctx, busy) {
		t.Error("no attempt is left for a router that is there")
	}
	known := attempts{router: &acquaintance{}, began: longAgo, left: 9}
	known.succeeded()
	if !known.wait(ctx, silence()) {
		t.Error("a router that has answered is not waited for")
	}
}
