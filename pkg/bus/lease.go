package bus

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

// LeaseConfig tunes leases.
type LeaseConfig struct {
	// Owner is the instance that holds the leases, for people who look at the bucket.
	Owner string
	// TTL is after how long without renewal somebody else may take a lease (10 s, whole seconds; 20 s on a cluster).
	// Renew is how often it is renewed (3 s). GiveUp is after how long without a successful renewal the owner stops by
	// itself (8 s; less than TTL).
	TTL, Renew, GiveUp time.Duration
}

// Leases decide who owns what. An owner that is cut off stops by itself before somebody else can take over. Clocks are
// not compared, but a process that was stopped and goes on may believe for a moment that it still owns: two owners at
// once must be harmless. Leases, and their bucket, do not outlive a restart of a broker without replicas, as they are
// kept in memory: then the bucket is made anew, for which a stage needs the right $JS.API.STREAM.CREATE.KV_leases.
type Leases struct {
	conn   *Conn
	config LeaseConfig
	bucket *Bucket
}

// ErrLeased says that somebody else holds the lease.
var ErrLeased = errors.New("somebody else holds the lease")

// NewLeases makes the leases of one owner.
func NewLeases(conn *Conn, config LeaseConfig) *Leases {
	if config.TTL <= 0 {
		config.TTL = 10 * time.Second
	}
	config.TTL = max(config.TTL.Round(time.Second), time.Second) // the broker's resolution
	if config.Renew <= 0 {
		config.Renew = config.TTL * 3 / 10
	}
	if config.GiveUp <= 0 || config.GiveUp >= config.TTL {
		config.GiveUp = config.TTL * 8 / 10
	}
	return &Leases{conn: conn, config: config, bucket: conn.bucket(bucketLeases)}
}

// Lease is held until it is released or lost.
type Lease struct {
	leases *Leases
	key    string
	value  []byte // owner and a number used once: no two holders write the same
	token  uint64
	ctx    context.Context //nolint:containedctx // it is what the lease is: valid until it ends
	cancel context.CancelFunc
	ended  chan struct{} // closed when nobody renews any more

	mu       sync.Mutex
	revision uint64
	renewed  time.Time // when the last successful renewal began
}

// Try takes a lease if nobody holds it, else returns [ErrLeased]. The lease lives until it is lost or released,
// whatever becomes of ctx.
func (l *Leases) Try(ctx context.Context, key string) (*Lease, error) {
	began := time.Now()
	entry, err := l.bucket.last(ctx, key)
	if fault.CodeOf(err) == fault.StoreMissing {
		if err = l.conn.restoreLeases(ctx); err == nil {
			entry, err = l.bucket.last(ctx, key)
		}
	}
	switch {
	case errors.Is(err, ErrNotFound):
		entry = Entry{}
	case err != nil:
		return nil, err
	case !entry.Deleted:
		return nil, ErrLeased
	}
	value := []byte(l.config.Owner + " " + nuid.Next())
	revision, err := l.write(ctx, key, value, entry.Revision)
	if err != nil && errCode(err) != codeWrongLastSequence && unknownOutcome(err) {
		// It may have been written. If so nobody else has the lease, and it ends by itself.
		revision, err = l.adopt(ctx, key, value)
	}
	if err != nil {
		if code := errCode(err); code == codeWrongLastSequence || code == codeWrongLastInFlight ||
			errors.Is(err, ErrLeased) {
			return nil, ErrLeased
		}
		return nil, l.conn.fault(err, began, "the bucket "+bucketLeases)
	}
	lease := &Lease{
		leases: l, key: key, value: value, token: revision, revision: revision, renewed: began,
		ended: make(chan struct{}),
	}
	lease.ctx, lease.cancel = context.WithCancel(context.Background())
	go lease.keep()
	return lease, nil
}

// Acquire takes a lease and waits for it as long as somebody else holds it, or the broker does not answer. It returns
// an error only when ctx ends, or when the store is not set up or denies it.
func (l *Leases) Acquire(ctx context.Context, key string) (*Lease, error) {
	for {
		lease, err := l.Try(ctx, key)
		if err == nil {
			return lease, nil
		}
		switch fault.CodeOf(err) {
		case fault.StoreMissing, fault.StoreDenied:
			return nil, err
		}
		// Spread, so that those who wait do not come all at once.
		wait := l.config.TTL / 20
		wait += rand.N(wait) //nolint:gosec // spreading needs no secret
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// write stores the lease for another TTL if the key's revision is still the given one. A KV update would do all but the
// TTL: it drops it, and the key would stay for ever (measured).
func (l *Leases) write(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	out := Outgoing{
		Subject: l.bucket.prefix() + key, Body: value, After: &After{Sequence: revision},
		Header: map[string]string{jetstream.MsgTTLHeader: l.config.TTL.String()},
	}
	ack, err := l.send(ctx, out)
	return ack.Sequence, err
}

func (l *Leases) send(ctx context.Context, out Outgoing) (publishAnswer, error) {
	ctx, cancel := l.conn.within(ctx, min(attempt, l.config.Renew))
	defer cancel()
	var response *nats.Msg
	response, err := l.conn.nc.RequestMsgWithContext(ctx, out.message())
	if err != nil {
		return publishAnswer{}, err
	}
	return pubAck(response.Data)
}

// adopt finds the revision of our own writing whose answer was lost.
func (l *Leases) adopt(ctx context.Context, key string, value []byte) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, min(attempt, l.config.Renew))
	defer cancel()
	entry, err := l.bucket.last(ctx, key)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return 0, err
	}
	if err != nil || entry.Deleted || !bytes.Equal(entry.Value, value) {
		return 0, ErrLeased
	}
	return entry.Revision, nil
}

// keep renews the lease until it is lost or released.
func (l *Lease) keep() {
	defer close(l.ended)
	defer l.cancel()
	ticker := time.NewTicker(l.leases.config.Renew)
	defer ticker.Stop()
	expiry := time.NewTimer(time.Until(l.deadline()))
	defer expiry.Stop()
	renewals := make(chan bool, 1)
	busy := false
	for {
		select {
		case <-l.ctx.Done():
			if busy {
				<-renewals // what comes after the release must not be overtaken by it
			}
			return
		case <-expiry.C:
			if until := time.Until(l.deadline()); until > 0 {
				expiry.Reset(until)
				continue
			}
			l.leases.conn.log.Warn("lease given up: it could not be renewed", "lease", l.key)
			return
		case <-ticker.C:
			if !busy {
				busy = true
				go func() { renewals <- l.renew() }()
			}
		case held := <-renewals:
			busy = false
			if !held {
				l.leases.conn.log.Warn("lease lost", "lease", l.key)
				return
			}
			expiry.Reset(time.Until(l.deadline()))
		}
	}
}

func (l *Lease) deadline() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewed.Add(l.leases.config.GiveUp)
}

// renew is false when the lease is somebody else's now, or nobody's. When the broker does not answer it is still ours,
// for a while.
func (l *Lease) renew() bool {
	began := time.Now()
	l.mu.Lock()
	revision := l.revision
	l.mu.Unlock()
	next, err := l.leases.write(l.ctx, l.key, l.value, revision)
	if errCode(err) == codeWrongLastSequence || errCode(err) == codeWrongLastInFlight {
		// Our own renewal, whose answer was lost, may be what is in the way. Then it is as old as that renewal, so the
		// time is not counted from now.
		next, err = l.leases.adopt(l.ctx, l.key, l.value)
		if errors.Is(err, ErrLeased) {
			return false
		}
		began = time.Time{}
	}
	if err != nil {
		l.leases.conn.log.Debug("lease not renewed", "lease", l.key, "error", fault.Quote(err.Error()))
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.revision = next
	if began.After(l.renewed) {
		l.renewed = began
	}
	return true
}

// Fresh tells whether the lease is certainly held: ask before each effect.
func (l *Lease) Fresh() bool { return l.ctx.Err() == nil && time.Now().Before(l.deadline()) }

// Context ends when the lease is lost or released. Work under the lease uses it.
func (l *Lease) Context() context.Context { return l.ctx }

// Token grows with every new holder of the lease (fencing token).
func (l *Lease) Token() uint64 { return l.token }

// Release gives the lease up at once, so that somebody else need not wait for its end. It is safe to call it twice.
func (l *Lease) Release(ctx context.Context) error {
	held := l.ctx.Err() == nil
	l.cancel()
	<-l.ended
	if !held {
		return nil
	}
	l.mu.Lock()
	revision := l.revision
	l.mu.Unlock()
	began := time.Now()
	_, err := l.leases.send(ctx, Outgoing{
		Subject: l.leases.bucket.prefix() + l.key, After: &After{Sequence: revision},
		Header: map[string]string{headerOperation: "DEL", jetstream.MsgTTLHeader: "60s"},
	})
	if errCode(err) == codeWrongLastSequence {
		return nil // it is not ours any more
	}
	return l.leases.conn.fault(err, began, string(contract.Stream("KV_"+bucketLeases)))
}
