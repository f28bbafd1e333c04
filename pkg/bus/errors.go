package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"posthorn/pkg/fault"
)

// ErrNotFound says that the broker answered and that there is no such message, key or object.
var ErrNotFound = errors.New("not found")

// AlreadyStored says that the filter of [Outgoing.Once] holds a message: nothing was stored now.
type AlreadyStored struct {
	// Sequence of the stored message, 0 when the broker did not tell.
	Sequence uint64
}

// Error names the sequence.
func (e *AlreadyStored) Error() string {
	return fmt.Sprintf("already stored with sequence %d", e.Sequence)
}

// Error codes of JetStream (err_code in its answers) that mean something to us. The client library names only some.
const (
	codeWrongLastSequence  = 10071
	codeWrongLastInFlight  = 10164 // another message for the filter is in flight, not committed
	codeExpectedNotReady   = 10163
	codeDuplicateInFlight  = 10158
	codeStoreFailed        = 10077 // stream full, subject full, or the disk failed: only the text tells
	codeAccountLimit       = 10002
	codeInsufficient       = 10023
	codeMemoryExceeded     = 10028
	codeStorageExceeded    = 10047
	codeMaxStreamBytes     = 10122
	codeMessageTooLarge    = 10054
	codeHeaderTooLarge     = 10097
	codeNoMessage          = 10037
	codeSequenceNotFound   = 10043
	codeDeleteFailed       = 10057
	codeStreamNotFound     = 10059
	codeConsumerNotFound   = 10014
	codeNotLeader          = 10009
	codeNotAvailable       = 10008
	codeAtomicDisabled     = 10174
	codeBatchTooLarge      = 10199
	codeTooManyBatches     = 10210
	codeStreamNameInUse    = 10058
	codeJetStreamDisabled  = 10076
	codeJetStreamNoAccount = 10039
	codeStreamOffline      = 10118
)

// Texts that alone tell the kinds of codeStoreFailed apart.
const (
	textMaxPerSubject = "maximum messages per subject"
	textTooLarge      = "too large"
)

// errCode is the JetStream error code in err's chain, 0 when there is none.
func errCode(err error) int {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		return int(api.ErrorCode)
	}
	if js, ok := errors.AsType[jetstream.JetStreamError](err); ok && js.APIError() != nil {
		return int(js.APIError().ErrorCode)
	}
	return 0
}

// unknownOutcome tells whether the broker may have done what it was asked although no answer came.
func unknownOutcome(err error) bool {
	return errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, context.Canceled) || errors.Is(err, nats.ErrConnectionClosed) ||
		errors.Is(err, nats.ErrDisconnected) || errors.Is(err, nats.ErrConnectionReconnecting) ||
		errors.Is(err, nats.ErrReconnectBufExceeded) || errors.Is(err, nats.ErrStaleConnection) ||
		errors.Is(err, jetstream.ErrInvalidJSAck)
}

// fault gives an error of the client library its code. since is when the operation began: a time-out after a refused
// right seen since then is store.denied, as the broker tells about rights only beside the connection. what names what
// was asked for, in case it is missing.
func (c *Conn) fault(err error, since time.Time, what string) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	if _, ok := errors.AsType[*AlreadyStored](err); ok || errors.Is(err, ErrNotFound) {
		return err
	}
	if errors.Is(err, nats.ErrNoResponders) || unknownOutcome(err) {
		if right := c.deniedSince(since); right != "" {
			return fault.New(fault.StoreDenied, err, fault.Params{"right": right})
		}
		if c.embedded != nil && fault.CodeOf(c.embedded.Healthy()) == fault.StoreFull {
			return fault.New(fault.StoreFull, err, nil) // it does not answer because it gave up on the disk
		}
		return fault.New(fault.StoreUnavailable, err, nil)
	}
	if errors.Is(err, nats.ErrMaxPayload) {
		return fault.New(fault.MailTooLarge, err, fault.Params{"limit": "the store's max_payload"})
	}
	switch {
	case errors.Is(err, jetstream.ErrBucketNotFound), errors.Is(err, jetstream.ErrStreamNotFound),
		errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrConsumerDoesNotExist),
		errors.Is(err, jetstream.ErrConsumerDeleted):
		return fault.New(fault.StoreMissing, err, fault.Params{"what": what})
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fault.New(fault.StoreUnavailable, err, nil)
	}
	switch errCode(err) {
	case codeStreamNotFound, codeConsumerNotFound:
		return fault.New(fault.StoreMissing, err, fault.Params{"what": what})
	case codeNoMessage:
		return ErrNotFound
	case codeAccountLimit, codeInsufficient, codeMemoryExceeded, codeStorageExceeded, codeMaxStreamBytes:
		return fault.New(fault.StoreFull, err, nil)
	case codeStoreFailed:
		if strings.Contains(err.Error(), textTooLarge) {
			return fault.New(fault.MailTooLarge, err, fault.Params{"limit": "the store's message size"})
		}
		return fault.New(fault.StoreFull, err, nil)
	case codeMessageTooLarge, codeHeaderTooLarge:
		return fault.New(fault.MailTooLarge, err, fault.Params{"limit": "the store's message size"})
	case codeWrongLastSequence:
		return fault.New(fault.StoreConflict, err, fault.Params{"what": what})
	case codeNotLeader, codeNotAvailable, codeStreamOffline, codeWrongLastInFlight, codeExpectedNotReady,
		codeDuplicateInFlight, codeTooManyBatches, codeJetStreamDisabled, codeJetStreamNoAccount:
		return fault.New(fault.StoreUnavailable, err, nil)
	}
	return fault.New(fault.StoreUnknown, err, nil)
}

// answer decodes a JetStream API answer into v; an error in it is returned as such.
func answer(data []byte, v any) error {
	var failed struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(data, &failed); err != nil {
		return jetstream.ErrInvalidJSAck
	}
	if failed.Error != nil {
		return failed.Error
	}
	if v == nil {
		return nil
	}
	if err := json.Unmarshal(data, v); err != nil {
		return jetstream.ErrInvalidJSAck
	}
	return nil
}
