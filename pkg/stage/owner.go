package stage

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/source"
)

// Owned is one source that this process owns for now: whoever works on it stops when the context ends, and causes no
// effect without a fresh lease.
type Owned struct {
	Source source.Source
	// Changes holds the newest settings of the source whenever they have changed.
	Changes <-chan source.Source
	lease   *bus.Lease
}

// Fresh tells whether the lease on the source still holds. Ask before every effect.
func (o Owned) Fresh() bool { return o.lease.Fresh() }

// InHand is the context for finishing what is in hand: it goes on when the stage is asked to stop, and ends when the
// lease is lost, or after d.
func (o Owned) InHand(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(o.lease.Context(), d)
}

// Owner gives sources to the one process of a stage that holds the lease of their shard.
type Owner struct {
	// Stage is the first token of the lease keys.
	Stage   string
	Leases  *bus.Leases
	Sources *source.Store
	Log     *slog.Logger

	mu      sync.Mutex
	running map[string]*run
	shards  [contract.Shards]shard
}

type run struct {
	changes chan source.Source
	stop    context.CancelFunc
	done    chan struct{}
}

// shard is the lease that all sources of one shard share.
type shard struct {
	mu    sync.Mutex // held while the lease is being acquired
	lease *bus.Lease
	users int
}

// Run calls work for every source, in a goroutine of its own, while this process owns it; again when it owns it anew.
// removed is called after work has ended for a source that was deleted. ready is called once, when changes are being
// followed. Run returns when ctx has ended and all work has, or when changes can no longer be followed.
func (o *Owner) Run(
	ctx context.Context, ready func(), work func(context.Context, Owned), removed func(context.Context, string),
) error {
	o.running = map[string]*run{}
	ctx, cancel := context.WithCancel(ctx)
	defer o.stopAll()
	defer cancel()
	err := o.Sources.Watch(ctx, func(change source.Change) {
		switch {
		case change.Ready:
			ready()
		case change.Removed:
			o.stop(change.ID)
			removed(ctx, change.ID)
		default:
			o.follow(ctx, change.Source, work)
		}
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// follow starts work on a source, or hands new settings to the work that runs.
func (o *Owner) follow(ctx context.Context, s source.Source, work func(context.Context, Owned)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if r, ok := o.running[s.ID]; ok {
		select {
		case <-r.changes: // not read yet: only the newest counts
		default:
		}
		r.changes <- s
		return
	}
	ctx, stop := context.WithCancel(ctx)
	r := &run{changes: make(chan source.Source, 1), stop: stop, done: make(chan struct{})}
	o.running[s.ID] = r
	go func() {
		defer close(r.done)
		o.own(ctx, s, r.changes, work)
	}()
}

// own waits for the lease and works while it holds.
func (o *Owner) own(
	ctx context.Context, s source.Source, changes chan source.Source, work func(context.Context, Owned),
) {
	n := contract.Shard(s.ID)
	for failures := 0; ctx.Err() == nil; {
		lease, err := o.acquire(ctx, n)
		if err != nil {
			failures++
			wait := fault.Delay(err, failures)
			if ctx.Err() == nil {
				o.Log.Warn("the lease of a source cannot be taken", "source", s.ID, "error", err, "wait", wait.String())
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
			continue
		}
		failures = 0
		select { // settings may have changed while waiting
		case s = <-changes:
		default:
		}
		o.Log.Debug("a source is owned", "source", s.ID)
		owned, stop := context.WithCancel(ctx)
		lost := context.AfterFunc(lease.Context(), stop)
		work(owned, Owned{Source: s, Changes: changes, lease: lease})
		lost()
		stop()
		o.release(n)
	}
}

func (o *Owner) acquire(ctx context.Context, n int) (*bus.Lease, error) {
	s := &o.shards[n]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease != nil && s.lease.Context().Err() == nil {
		s.users++
		return s.lease, nil
	}
	lease, err := o.Leases.Acquire(ctx, o.Stage+"."+strconv.Itoa(n))
	if err != nil {
		return nil, err
	}
	s.lease, s.users = lease, 1
	return lease, nil
}

func (o *Owner) release(n int) {
	s := &o.shards[n]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users > 0 || s.lease == nil {
		return
	}
	Release(s.lease, o.Log)
	s.lease = nil
}

func (o *Owner) stop(id string) {
	o.mu.Lock()
	r, ok := o.running[id]
	delete(o.running, id)
	o.mu.Unlock()
	if ok {
		r.stop()
		<-r.done
	}
}

func (o *Owner) stopAll() {
	o.mu.Lock()
	runs := o.running
	o.running = map[string]*run{}
	o.mu.Unlock()
	for _, r := range runs {
		r.stop()
	}
	for _, r := range runs {
		<-r.done
	}
}

// Release gives a lease back, so that others need not wait until it has run out.
func Release(lease *bus.Lease, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := lease.Release(ctx); err != nil {
		log.Debug("a lease was not given back and runs out by itself", "error", err)
	}
}
