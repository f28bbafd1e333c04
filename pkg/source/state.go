package source

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"time"

	"posthorn/pkg/fault"
)

// StateName is what is known of a source in one word.
type StateName string

// The states. Only failing means that nothing is being taken in; see [Combine] for which one is shown.
const (
	StateOK         StateName = "ok"
	StateConnecting StateName = "connecting"
	StateFailing    StateName = "failing"
	StateDegraded   StateName = "degraded" // taken in, but something needs a look
	StateStale      StateName = "stale"    // no complete cycle for too long
	StatePaused     StateName = "paused"
)

// State of a source as one stage knows it, and as `status --json` shows it.
type State struct {
	// ID and Name of the source are set where states are shown.
	ID    string      `json:"id,omitempty"`
	Name  string      `json:"name,omitempty"`
	State StateName   `json:"state"`
	Error *StateError `json:"error,omitempty"`
	// Since is when the source came into this state.
	Since time.Time `json:"since,omitzero"`
	// LastCycle is when the last complete cycle ended: the only proof of health.
	LastCycle time.Time `json:"last_cycle,omitzero"`
	// Progress is when a long cycle that is still running last took mail in.
	Progress time.Time `json:"progress,omitzero"`
	NextTry  time.Time `json:"next_try,omitzero"`
	Counts
	// Backlog is how many mails of the Inbox a running cycle has still before it.
	Backlog int `json:"backlog,omitempty"`
	// Instance is the process that wrote this.
	Instance string `json:"instance,omitempty"`
	// Notes are sentences about what a person should know although nothing is wrong.
	Notes []string `json:"notes,omitempty"`
	// PausedBy is set where a paused state is shown.
	PausedBy string `json:"paused_by,omitempty"`
}

// Counts say where the mails of a source are.
type Counts struct {
	// TakenIn counts since the source was added.
	TakenIn int `json:"taken_in"`
	// Inbox is how many mails lay in the Inbox in the last complete cycle; Left of them stay there, by reason in LeftBy.
	Inbox  int            `json:"inbox"`
	Left   int            `json:"left"`
	LeftBy map[string]int `json:"left_by,omitempty"`
	Dead   int            `json:"dead"`
	// Waiting are taken in and not decided yet, or still to be fetched.
	Waiting     int `json:"waiting"`
	Unaccounted int `json:"unaccounted"`
}

// Equal compares all counts.
func (c Counts) Equal(other Counts) bool {
	return c.TakenIn == other.TakenIn && c.Inbox == other.Inbox && c.Left == other.Left && c.Dead == other.Dead &&
		c.Waiting == other.Waiting && c.Unaccounted == other.Unaccounted && maps.Equal(c.LeftBy, other.LeftBy)
}

// StateError is why a source is not well, for programs (Code, Params) and for people: Text is what happened, Now what
// Posthorn does, You what the person can do, in English. Other languages come from Code and Params.
type StateError struct {
	Code   fault.Code   `json:"code"`
	Params fault.Params `json:"params,omitempty"`
	Text   string       `json:"text"`
	Now    string       `json:"now,omitempty"`
	You    string       `json:"you,omitempty"`
	Since  time.Time    `json:"since"`
}

// NewStateError is the part of an error that may be stored and shown: never its cause. A nil error gives nil.
func NewStateError(err *fault.Error, since time.Time) *StateError {
	if err == nil {
		return nil
	}
	text := err.Text("en")
	return &StateError{
		Code: err.Code, Params: err.Params, Text: text.Headline, Now: text.Now, You: text.You, Since: since.UTC(),
	}
}

// ErrorCode is the code of the error, "" without one.
func (s State) ErrorCode() fault.Code {
	if s.Error == nil {
		return ""
	}
	return s.Error.Code
}

// Combine makes the state that is shown of a source out of what its fetcher and its archiver report (the zero State
// when they report nothing). The first that holds: paused, failing (nothing is being taken in), stale (no complete
// cycle for [Source.StaleAfter]), degraded (the fetcher says so, or the archiver has an error), else what the fetcher
// says; connecting when it has not said anything yet.
func Combine(s Source, fetch, archive State, now time.Time) State {
	shown := fetch
	shown.ID, shown.Name, shown.PausedBy = s.ID, s.Name, ""
	shown.Notes = append(append([]string(nil), fetch.Notes...), archive.Notes...)
	alive := fetch.LastCycle // or what began later: then the first cycle is still to come
	for _, began := range []time.Time{s.CreatedAt, s.ResumedAt, fetch.Progress} {
		if began.After(alive) {
			alive = began
		}
	}
	switch {
	case s.Paused:
		shown.State, shown.Since, shown.PausedBy = StatePaused, s.PausedAt, s.PausedBy
		shown.Error, shown.NextTry = nil, time.Time{}
	case fetch.State == StateFailing:
	case now.Sub(alive) > s.StaleAfter():
		shown.State, shown.Since = StateStale, alive
	case fetch.State == StateDegraded:
	case archive.Error != nil:
		shown.State, shown.Error, shown.Since = StateDegraded, archive.Error, archive.Error.Since
	case fetch.State == StatePaused, fetch.State == "": // resumed a moment ago, or never seen
		shown.State = StateConnecting
	}
	return shown
}

// States keeps what one stage reports of each source, under `<id>.<part>` in the bucket `source-state`.
type States struct {
	bucket Bucket
	part   string
}

// Parts of a source's state.
const (
	PartFetch   = "fetch"
	PartArchive = "archive"
)

// NewStates keeps the states of one part, [PartFetch] or [PartArchive].
func NewStates(bucket Bucket, part string) *States { return &States{bucket: bucket, part: part} }

// Put writes the state of a source.
func (st *States) Put(ctx context.Context, id string, state State) error {
	value, err := json.Marshal(state)
	if err != nil {
		return err
	}
	_, err = st.bucket.Put(ctx, id+"."+st.part, value)
	return err
}

// Get reads the state of a source; the zero State when there is none.
func (st *States) Get(ctx context.Context, id string) (State, error) {
	entry, err := st.bucket.Get(ctx, id+"."+st.part)
	if errors.Is(err, ErrNotFound) {
		return State{}, nil
	}
	if err != nil {
		return State{}, err
	}
	var state State
	err = json.Unmarshal(entry.Value, &state)
	return state, err
}

// All reads the states of this part, by source.
func (st *States) All(ctx context.Context) (map[string]State, error) {
	entries, err := st.bucket.List(ctx, "*."+st.part)
	if err != nil {
		return nil, err
	}
	states := make(map[string]State, len(entries))
	for _, entry := range entries {
		var state State
		if json.Unmarshal(entry.Value, &state) != nil {
			continue // written by another version; the next report replaces it
		}
		states[strings.TrimSuffix(entry.Key, "."+st.part)] = state
	}
	return states, nil
}

// Delete forgets the state of a source; nothing happens when there is none.
func (st *States) Delete(ctx context.Context, id string) error {
	entry, err := st.bucket.Get(ctx, id+"."+st.part)
	if err == nil {
		err = st.bucket.Delete(ctx, entry.Key, entry.Revision)
	}
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Shown reads the state of every source in the list as it is shown, see [Combine].
func Shown(ctx context.Context, bucket Bucket, sources []Source, now time.Time) ([]State, error) {
	fetch, err := NewStates(bucket, PartFetch).All(ctx)
	if err != nil {
		return nil, err
	}
	archive, err := NewStates(bucket, PartArchive).All(ctx)
	if err != nil {
		return nil, err
	}
	shown := make([]State, len(sources))
	for i, s := range sources {
		shown[i] = Combine(s, fetch[s.ID], archive[s.ID], now)
	}
	return shown, nil
}
