package quire

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"quire/clients/go/quirev1"
)

// Error of a call. All errors of a Client's and a Stream's methods are of this type.
//
//	var failed *quire.Error
//	if errors.As(err, &failed) && failed.Reason == quirev1.ErrorCode_ERROR_CODE_CONTEXT_LENGTH_EXCEEDED {
//		...
//	}
//
// status.Code(err) gives its Code, and errors.Is(err, context.Canceled) and
// errors.Is(err, context.DeadlineExceeded) hold where they should.
type Error struct {
	// Code is gRPC's.
	Code codes.Code
	// Reason is the router's word for it; unspecified where the error is not the router's.
	Reason quirev1.ErrorCode
	// Message names the field, the limit and the value.
	Message string
	// Field is the one that is wrong; empty: none, or it is not known.
	Field string
	// Retryable: the same request may succeed when it is sent again.
	Retryable bool
	// RetryAfter is to be waited before that.
	RetryAfter time.Duration

	status *status.Status
	// silent: nobody answered.
	silent bool
}

func (e *Error) Error() string {
	return fmt.Sprintf("quire: %s (%s)", e.Message, e.Code)
}

// GRPCStatus is what status.FromError looks for.
func (e *Error) GRPCStatus() *status.Status {
	return e.status
}

// Is tells errors.Is of a context that has ended.
func (e *Error) Is(target error) bool {
	switch target {
	case context.Canceled:
		return e.Code == codes.Canceled
	case context.DeadlineExceeded:
		return e.Code == codes.DeadlineExceeded
	}
	return false
}

// errorOf says what an error of gRPC's means; trailer is what came with it.
func errorOf(err error, trailer metadata.MD) *Error {
	said := status.Convert(err)
	e := &Error{Code: said.Code(), Message: said.Message(), status: said}
	if detail := detailOf(said); detail != nil {
		e.Reason = detail.GetCode()
		e.Field = detail.GetField()
		e.Retryable = detail.GetRetryable()
		e.RetryAfter = time.Duration(detail.GetRetryAfterMs()) * time.Millisecond
		return e
	}
	e.RetryAfter, e.Retryable = pushbackOf(said.Code(), trailer)
	e.silent = e.Code == codes.Unavailable && len(trailer.Get(pushbackTrailer)) == 0
	return e
}

// detailOf reads what the router says to programs; nil where it says nothing.
func detailOf(said *status.Status) *quirev1.ErrorDetail {
	for _, packed := range said.Proto().GetDetails() {
		var detail quirev1.ErrorDetail
		name := string(detail.ProtoReflect().Descriptor().FullName())
		if !strings.HasSuffix(packed.GetTypeUrl(), "/"+name) {
			continue
		}
		if proto.Unmarshal(packed.GetValue(), &detail) == nil {
			return &detail
		}
	}
	return nil
}
