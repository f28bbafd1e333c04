package stage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"posthorn/pkg/fault"
)

// Stage is one room of the house. Run works until ctx ends, finishes what is in hand, and returns; it calls ready once,
// when it is at work.
type Stage interface {
	Run(ctx context.Context, ready func()) error
}

// Room says how a stage is made. A stage that fails is made anew.
type Room struct {
	Name string
	Make func(metrics prometheus.Registerer) (Stage, error)
}

// House runs rooms side by side. They are started together and stopped in the order given, each after the one before
// has finished what was in its hands: give the rooms in the order of a mail's way.
type House struct {
	Rooms []Room
	Log   *slog.Logger

	mu       sync.Mutex
	state    map[string]*roomState
	stopping bool
}

type roomState struct {
	ready   bool
	failure error
	metrics *prometheus.Registry
}

// Run starts every room and returns when ctx has ended and all have stopped. A room that fails is started again after a
// growing pause, and says so in the log and in [House.Ready]. ready is called when all rooms are at work for the first
// time.
func (h *House) Run(ctx context.Context, ready func()) {
	h.mu.Lock()
	h.state = map[string]*roomState{}
	for _, room := range h.Rooms {
		h.state[room.Name] = &roomState{}
	}
	h.mu.Unlock()

	var once sync.Once
	check := func() {
		if h.Ready() == nil {
			once.Do(ready)
		}
	}
	stops := make([]func(), len(h.Rooms))
	for i, room := range h.Rooms {
		roomCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.keep(roomCtx, room, check)
		}()
		stops[i] = func() {
			cancel()
			<-done
		}
	}
	<-ctx.Done()
	h.mu.Lock()
	h.stopping = true
	h.mu.Unlock()
	for i, stop := range stops {
		stop()
		h.Log.Debug("stopped", "stage", h.Rooms[i].Name)
	}
}

// keep runs one room for as long as ctx lasts.
func (h *House) keep(ctx context.Context, room Room, check func()) {
	for attempt := 1; ; attempt++ {
		started := time.Now()
		err := h.runOnce(ctx, room, check)
		if ctx.Err() != nil {
			if err != nil {
				h.Log.Warn("a stage did not stop cleanly", "stage", room.Name, "error", err)
			}
			return
		}
		if err == nil {
			err = errors.New("it stopped without being asked")
		}
		if time.Since(started) > time.Minute {
			attempt = 1
		}
		wait := fault.Delay(err, attempt)
		h.Log.Error("a stage failed and is started again", "stage", room.Name, "error", err, "wait", wait.String())
		h.set(room.Name, func(s *roomState) { s.ready, s.failure = false, err })
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

func (h *House) runOnce(ctx context.Context, room Room, check func()) error {
	registry := prometheus.NewRegistry()
	stage, err := room.Make(registry)
	if err != nil {
		return err
	}
	h.set(room.Name, func(s *roomState) { s.metrics = registry })
	return stage.Run(ctx, func() {
		h.set(room.Name, func(s *roomState) { s.ready, s.failure = true, nil })
		check()
	})
}

func (h *House) set(name string, change func(*roomState)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(h.state[name])
}

// Ready is nil while every room is at work; else it names those that are not.
func (h *House) Ready() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopping {
		return errors.New("stopping")
	}
	var errs []error
	for _, room := range h.Rooms {
		switch s := h.state[room.Name]; {
		case s == nil || !s.ready && s.failure == nil:
			errs = append(errs, fmt.Errorf("%s: starting", room.Name))
		case !s.ready:
			errs = append(errs, fmt.Errorf("%s: %w", room.Name, s.failure))
		}
	}
	return errors.Join(errs...)
}

// Gather collects the metrics of all rooms.
func (h *House) Gather() ([]*dto.MetricFamily, error) {
	h.mu.Lock()
	var all prometheus.Gatherers
	for _, room := range h.Rooms {
		if s := h.state[room.Name]; s != nil && s.metrics != nil {
			all = append(all, s.metrics)
		}
	}
	h.mu.Unlock()
	return all.Gather()
}
