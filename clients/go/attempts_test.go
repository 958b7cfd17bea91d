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
		{codes.Unavailable, "-1", -time.Millisecond, false},
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
		pause, retry := pushbackOf(status.Error(each.code, "not now"), trailer)
		if pause != each.pause || retry != each.retry {
			t.Errorf("%v %q: %v, %v", each.code, each.pushback, pause, retry)
		}
	}
}

func TestAttemptsEnd(t *testing.T) {
	err := status.Error(codes.Unavailable, "not now")
	ctx, cancel := context.WithCancel(context.Background())
	few := attempts{left: 2}
	if !few.wait(ctx, err, nil) || !few.wait(ctx, err, nil) || few.wait(ctx, err, nil) {
		t.Error("two attempts are left, and not two were made")
	}
	if (&attempts{left: 2, final: true}).wait(ctx, err, nil) {
		t.Error("tried again though something had come")
	}
	soon, end := context.WithTimeout(ctx, 10*time.Millisecond)
	defer end()
	if (&attempts{left: 2}).wait(soon, err, metadata.Pairs(pushbackTrailer, "60000")) {
		t.Error("waits beyond the deadline")
	}
	cancel()
	if (&attempts{left: 2}).wait(ctx, err, metadata.Pairs(pushbackTrailer, "60000")) {
		t.Error("tried again for nobody")
	}
}
