package bus

import (
	"context"
	"sync"
)

// Lane lets one message of a process run alone. Subscribers that share a lane (those of one [Conn] do) hand out a
// message that may have ended the process before only while no other is in hand, so that no innocent is counted with
// it.
type Lane struct {
	mu      sync.Mutex
	running int           // messages in hand
	alone   bool          // one runs alone
	waiting int           // messages that wait to run alone: they go first
	changed chan struct{} // closed on every change
}

// NewLane makes a lane.
func NewLane() *Lane { return &Lane{changed: make(chan struct{})} }

// enter waits until a message may run, alone or beside others, and returns how to leave; nil when ctx ended before.
func (l *Lane) enter(ctx context.Context, alone bool) (leave func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if alone {
		l.waiting++
		defer func() { l.waiting--; l.change() }()
	}
	for l.alone || alone && l.running > 0 || !alone && l.waiting > 0 {
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		l.mu.Lock()
		if ctx.Err() != nil {
			return nil
		}
	}
	l.running++
	l.alone = alone
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.running--
		l.alone = false
		l.change()
	})
}

// change wakes everybody who waits.
func (l *Lane) change() {
	close(l.changed)
	l.changed = make(chan struct{})
}
