package source

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"posthorn/pkg/fault"
)

func TestTheStateThatIsShown(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	s := good()
	s.CreatedAt = now.Add(-24 * time.Hour)
	fresh, old := now.Add(-time.Minute), now.Add(-6*time.Minute)
	dns := NewStateError(fault.New(fault.DNSNoSuchHost, nil, fault.Params{"host": "mial"}), old)
	refused := NewStateError(fault.New(fault.ArchiveRefused, nil, fault.Params{"mailbox": "Archive"}), fresh)
	paused, resumed, young, slow := s, s, s, s
	paused.Paused, paused.PausedBy, paused.PausedAt = true, "liisa", old
	resumed.ResumedAt = fresh
	young.CreatedAt = fresh
	slow.PollInterval = Duration(10 * time.Minute)
	for name, test := range map[string]struct {
		source         Source
		fetch, archive State
		state          StateName
		code           fault.Code
	}{
		"well": {s, State{State: StateOK, LastCycle: fresh}, State{}, StateOK, ""},
		"failing": {
			s,
			State{State: StateFailing, LastCycle: fresh, Error: dns},
			State{},
			StateFailing,
			fault.DNSNoSuchHost,
		},
		"failing for long": {
			s,
			State{State: StateFailing, LastCycle: old, Error: dns},
			State{},
			StateFailing,
			fault.DNSNoSuchHost,
		},
		"failing, archive too": {
			s,
			State{State: StateFailing, Error: dns},
			State{Error: refused},
			StateFailing,
			fault.DNSNoSuchHost,
		},
		"archive refuses": {
			s,
			State{State: StateOK, LastCycle: fresh},
			State{Error: refused},
			StateDegraded,
			fault.ArchiveRefused,
		},
		"degraded by the fetcher": {
			s,
			State{State: StateDegraded, LastCycle: fresh, Error: dns},
			State{Error: refused},
			StateDegraded,
			fault.DNSNoSuchHost,
		},
		"no cycle for long": {
			s,
			State{State: StateOK, LastCycle: old},
			State{Error: refused},
			StateStale,
			"",
		},
		"a long cycle that makes progress": {
			s,
			State{State: StateOK, LastCycle: old, Progress: fresh},
			State{},
			StateOK,
			"",
		},
		"no cycle for long, polls seldom": {slow, State{State: StateOK, LastCycle: old}, State{}, StateOK, ""},
		"connecting for long":             {s, State{State: StateConnecting}, State{}, StateStale, ""},
		"just added":                      {young, State{}, State{}, StateConnecting, ""},
		"nobody fetches":                  {s, State{}, State{}, StateStale, ""},
		"paused":                          {paused, State{State: StateOK, LastCycle: fresh}, State{}, StatePaused, ""},
		"paused while failing": {
			paused,
			State{State: StateFailing, Error: dns, NextTry: now},
			State{Error: refused},
			StatePaused,
			"",
		},
		"resumed, not noticed yet": {
			resumed,
			State{State: StatePaused, LastCycle: old},
			State{},
			StateConnecting,
			"",
		},
	} {
		got := Combine(test.source, test.fetch, test.archive, now)
		if got.State != test.state || got.ErrorCode() != test.code {
			t.Errorf("%s: %s %s, want %s %s", name, got.State, got.ErrorCode(), test.state, test.code)
		}
		if got.ID != s.ID || got.Name != s.Name {
			t.Errorf("%s: id %q, name %q", name, got.ID, got.Name)
		}
		if got.State == StatePaused && (got.PausedBy != "liisa" || !got.Since.Equal(old) || !got.NextTry.IsZero()) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestNotesOfBothStagesAreShown(t *testing.T) {
	fetch, archive := State{Notes: []string{"a"}}, State{Notes: []string{"b"}}
	if got := Combine(good(), fetch, archive, time.Now()); strings.Join(got.Notes, ",") != "a,b" || len(fetch.Notes) != 1 {
		t.Errorf("%v", got.Notes)
	}
}

func TestAStateIsShownAsTheDocumentationSays(t *testing.T) {
	since := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	failure := fault.New(fault.DNSNoSuchHost, errors.New("lookup: secret"), fault.Params{"host": "mial.example.org"})
	state := State{
		ID: "sales", Name: "Sales inbox", State: StateFailing, Error: NewStateError(failure, since), LastCycle: since,
		NextTry: since.Add(time.Minute), Counts: Counts{TakenIn: 3, Left: 2, Dead: 1},
	}
	got, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"id":"sales","name":"Sales inbox","state":"failing","error":{"code":"dns.no_such_host",` +
		`"params":{"host":"mial.example.org"},"text":"no such host is known",` +
		`"now":"The server name \"mial.example.org\" does not exist. We try again, at the latest every 5 minutes.",` +
		`"you":"Check the spelling of the server name.","since":"2026-11-23T10:00:00Z"},` +
		`"last_cycle":"2026-11-23T10:00:00Z","next_try":"2026-11-23T10:01:00Z",` +
		`"taken_in":3,"inbox":0,"left":2,"dead":1,"waiting":0,"unaccounted":0}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if NewStateError(nil, since) != nil {
		t.Error("no error has a state error")
	}
}

func TestStatesOfBothStagesAreKeptApartAndForgotten(t *testing.T) {
	bucket := newMemory()
	fetch, archive := NewStates(bucket, PartFetch), NewStates(bucket, PartArchive)
	now := time.Now().UTC().Truncate(time.Second)
	want := State{State: StateOK, LastCycle: now, Counts: Counts{LeftBy: map[string]int{"unsure": 2}}}
	for range 2 {
		if err := fetch.Put(t.Context(), "sales", want); err != nil {
			t.Fatal(err)
		}
	}
	refused := State{State: StateDegraded, Error: &StateError{Code: fault.ArchiveRefused}}
	if err := archive.Put(t.Context(), "sales", refused); err != nil {
		t.Fatal(err)
	}
	got, err := fetch.Get(t.Context(), "sales")
	if err != nil || !reflect.DeepEqual(got, want) || !got.Counts.Equal(want.Counts) {
		t.Errorf("%v, %+v", err, got)
	}
	s := good()
	s.CreatedAt = want.LastCycle
	shown, err := Shown(t.Context(), bucket, []Source{s, {ID: "new"}}, want.LastCycle)
	if err != nil || len(shown) != 2 || shown[0].State != StateDegraded || shown[1].ID != "new" {
		t.Errorf("%v, %+v", err, shown)
	}
	for range 2 {
		if err := fetch.Delete(t.Context(), "sales"); err != nil {
			t.Error(err)
		}
	}
	if got, err := fetch.Get(t.Context(), "sales"); err != nil || got.State != "" {
		t.Errorf("%v, %+v", err, got)
	}
	if got, err := archive.Get(t.Context(), "sales"); err != nil || got.State != StateDegraded {
		t.Errorf("%v, %+v", err, got)
	}
}
