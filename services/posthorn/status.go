package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/source"
	"posthorn/pkg/stage"
	"posthorn/services/allinone"
)

type statusCmd struct {
	JSON  bool `help:"Print JSON."`
	Check bool `help:"Also tell by the exit code: 0 well, 1 degraded, stale or paused, 2 failing or nothing running."`
}

// Help says more.
func (statusCmd) Help() string {
	return `Of each source: taken in since it was added; left in the Inbox on purpose; dead letters; waiting to be ` +
		`taken in; unaccounted, which should be 0. "Last full check" is the only proof of health.

Examples:

  posthorn status
  posthorn status --check || mail -s "Posthorn needs a look" ops@example.org < /dev/null
  posthorn status --json | jq '.sources[] | select(.state != "ok")'`
}

// status is what `status --json` prints: fields are only ever added.
type status struct {
	Sources []sourceStatus `json:"sources"`
	Stages  []stageStatus  `json:"stages"`
	Store   storeStatus    `json:"store"`
}

type sourceStatus struct {
	ID    string           `json:"id"`
	Name  string           `json:"name"`
	State source.StateName `json:"state"`
	// Error is null when nothing is wrong.
	Error       *sourceError   `json:"error"`
	LastCycle   *time.Time     `json:"last_cycle"`
	NextTry     *time.Time     `json:"next_try"`
	TakenIn     int            `json:"taken_in"`
	Left        int            `json:"left"`
	Dead        int            `json:"dead"`
	Waiting     int            `json:"waiting"`
	Unaccounted int            `json:"unaccounted"`
	Since       *time.Time     `json:"since"`
	Inbox       int            `json:"inbox"`
	LeftBy      map[string]int `json:"left_by"`
	PausedBy    string         `json:"paused_by,omitempty"`
	Notes       []string       `json:"notes"`

	shown shownSource
}

type sourceError struct {
	Code fault.Code `json:"code"`
	Text string     `json:"text"`
	// Since is when it began.
	Since time.Time `json:"since"`
	Now   string    `json:"now,omitempty"`
	You   string    `json:"you,omitempty"`
}

type stageStatus struct {
	Name string `json:"name"`
	// Instances is how many processes run the stage.
	Instances int `json:"instances"`
	// Lag is how many messages wait for the stage or are in its hands; of the fetcher, mails in the Inboxes.
	Lag int `json:"lag"`
}

type storeStatus struct {
	SyncAlways bool `json:"sync_always"`
	// Bytes that are kept, and how many may be; limit 0 is unknown.
	Bytes int64 `json:"bytes"`
	Limit int64 `json:"limit"`
}

// Run shows the status.
func (c *statusCmd) Run(p *program) error {
	now, err := p.status()
	if _, ok := err.(*notRunning); ok && c.Check { //nolint:errorlint // returned as it is
		complain(p.err, err)
		return exitCode(2)
	}
	if err != nil {
		return err
	}
	if c.JSON {
		err = p.printJSON(now)
	} else {
		err = p.printStatus(now)
	}
	if err == nil && c.Check {
		if code := now.check(); code != exitOK {
			return exitCode(code)
		}
	}
	return err
}

// status asks the running program.
func (p *program) status() (status, error) {
	var now status
	err := p.withStore(func(conn *bus.Conn, store *source.Store) (err error) {
		now, err = p.ask(conn, store)
		return err
	})
	return now, err
}

func (p *program) ask(conn *bus.Conn, store *source.Store) (status, error) {
	now := status{Sources: []sourceStatus{}}
	sources, err := store.List(p.ctx)
	if err != nil {
		return now, err
	}
	shown, err := p.shown(conn, sources)
	if err != nil {
		return now, err
	}
	for _, s := range shown {
		now.Sources = append(now.Sources, newSourceStatus(s))
	}
	presents, err := stage.Presents(p.ctx, conn)
	if err != nil {
		return now, err
	}
	if now.Stages, err = p.stages(conn, presents, shown); err != nil {
		return now, err
	}
	now.Store.SyncAlways = durable(presents)
	now.Store.Bytes, now.Store.Limit, err = conn.Usage(p.ctx)
	if err != nil {
		p.log.Warn("how much is stored is not known", "error", err)
	}
	for _, present := range presents { // an embedded server has a limit that only it knows
		if present.MaxStore > 0 && now.Store.Limit == 0 {
			now.Store.Limit = present.MaxStore
		}
	}
	return now, nil
}

// durable tells whether every process that moves and deletes mail knows that its store survives a power cut.
func durable(presents []stage.Present) bool {
	moving := slices.DeleteFunc(slices.Clone(presents), func(present stage.Present) bool {
		return !slices.Contains(present.Stages, allinone.Archiver)
	})
	if len(moving) == 0 {
		moving = presents
	}
	return len(moving) > 0 && !slices.ContainsFunc(moving, func(present stage.Present) bool { return !present.Durable })
}

func newSourceStatus(shown shownSource) sourceStatus {
	state := shown.State
	one := sourceStatus{
		ID: shown.ID, Name: shown.Name, State: state.State, LastCycle: utc(state.LastCycle), NextTry: utc(state.NextTry),
		TakenIn: state.TakenIn, Left: state.Left, Dead: state.Dead, Waiting: state.Waiting,
		Unaccounted: state.Unaccounted, Since: utc(state.Since), Inbox: state.Inbox, LeftBy: state.LeftBy,
		PausedBy: state.PausedBy, Notes: state.Notes, shown: shown,
	}
	if one.LeftBy == nil {
		one.LeftBy = map[string]int{}
	}
	if one.Notes == nil {
		one.Notes = []string{}
	}
	if e := state.Error; e != nil {
		if one.Since == nil {
			one.Since = utc(e.Since)
		}
		one.Error = &sourceError{Code: e.Code, Text: e.Text, Since: e.Since.UTC(), Now: e.Now, You: e.You}
	}
	return one
}

// whole is a number of messages.
func whole(n uint64) int { return int(min(n, 1<<53)) } //nolint:gosec // bounded

// stages counts the processes of each stage and what waits for it.
func (p *program) stages(
	conn *bus.Conn, presents []stage.Present, shown []shownSource,
) ([]stageStatus, error) {
	lag := map[string]int{}
	add := func(name string, stream contract.Stream, durable string) error {
		pending, inHand, err := conn.Lag(p.ctx, stream, durable)
		if fault.CodeOf(err) == fault.StoreMissing { // made when there is something to do
			return nil
		}
		lag[name] += whole(pending) + whole(inHand)
		return err
	}
	for _, s := range shown {
		lag[allinone.Fetcher] += s.State.Backlog
	}
	if err := add(allinone.Parser, contract.StreamMail, bus.DurableParser); err != nil {
		return nil, err
	}
	if err := add(allinone.Parser, contract.StreamParsed, bus.DurableParserEvaluate); err != nil {
		return nil, err
	}
	if err := add(allinone.Router, contract.StreamParsed, bus.DurableRouter); err != nil {
		return nil, err
	}
	for _, s := range shown {
		if err := add(allinone.Archiver, contract.StreamDispositions, bus.DurableArchiver(s.ID)); err != nil {
			return nil, err
		}
	}
	var stages []stageStatus
	for _, name := range []string{allinone.Fetcher, allinone.Parser, allinone.Router, allinone.Archiver} {
		one := stageStatus{Name: name, Lag: lag[name]}
		for _, present := range presents {
			if slices.Contains(present.Stages, name) {
				one.Instances++
			}
		}
		stages = append(stages, one)
	}
	return stages, nil
}

// check is the exit code of status --check.
func (s status) check() int {
	code := exitOK
	for _, one := range s.Sources {
		switch one.State {
		case source.StateFailing:
			return 2
		case source.StateDegraded, source.StateStale, source.StatePaused:
			code = 1
		}
	}
	for _, one := range s.Stages {
		if one.Instances == 0 {
			return 2
		}
	}
	return code
}

// verdict is the first line: is mail at risk?
func (s status) verdict() string {
	var failing, look, paused, idle []string
	for _, one := range s.Sources {
		switch one.State {
		case source.StateFailing:
			failing = append(failing, one.ID)
		case source.StateDegraded, source.StateStale:
			look = append(look, one.ID)
		case source.StatePaused:
			paused = append(paused, one.ID)
		}
	}
	for _, one := range s.Stages {
		if one.Instances == 0 {
			idle = append(idle, one.Name)
		}
	}
	const safe = " No mail at risk: it waits on its server."
	switch {
	case len(idle) == len(s.Stages):
		return "Nothing is running." + safe
	case len(idle) > 0:
		return "No process runs: " + strings.Join(idle, ", ") + "." + safe
	case len(failing) > 0:
		return "Not taking in: " + strings.Join(failing, ", ") + "." + safe
	case len(look) > 0:
		return "Needs a look: " + strings.Join(look, ", ") + "." + safe
	case len(paused) > 0:
		return "Paused: " + strings.Join(paused, ", ") + "." + safe
	case len(s.Sources) == 0:
		return "Running, but there are no sources yet: posthorn sources apply -f FILE"
	default:
		return "All well."
	}
}

// printStatus prints it for people.
func (p *program) printStatus(s status) error {
	if err := p.printf("%s\n\n", s.verdict()); err != nil {
		return err
	}
	sources := slices.Clone(s.Sources)
	slices.SortStableFunc(sources, func(a, b sourceStatus) int { return urgency(a.State) - urgency(b.State) })
	t := table{
		head: []string{
			"STATE", "ID", "NAME", "LAST FULL CHECK", "TAKEN IN", "LEFT", "DEAD", "WAITING", "UNACCOUNTED",
		},
		right: map[int]bool{4: true, 5: true, 6: true, 7: true, 8: true},
	}
	for _, one := range sources {
		below := p.reasons(one.shown)
		if by := leftBy(one.LeftBy); by != "" && one.Left > 0 {
			below = append(below, "left in the Inbox on purpose: "+by)
		}
		t.add([]string{
			mark(one.State), one.ID, plain(one.Name, 40), ago(one.shown.State.LastCycle, p.now()), strconv.Itoa(one.TakenIn),
			strconv.Itoa(one.Left), strconv.Itoa(one.Dead), strconv.Itoa(one.Waiting), strconv.Itoa(one.Unaccounted),
		}, below...)
	}
	if len(sources) > 0 {
		if err := t.print(p.out); err != nil {
			return err
		}
		if err := p.printf("\n"); err != nil {
			return err
		}
	}
	t = table{head: []string{"STAGE", "INSTANCES", "LAG"}, right: map[int]bool{1: true, 2: true}}
	for _, one := range s.Stages {
		t.add([]string{one.Name, strconv.Itoa(one.Instances), strconv.Itoa(one.Lag)})
	}
	if err := t.print(p.out); err != nil {
		return err
	}
	running := slices.ContainsFunc(s.Stages, func(one stageStatus) bool { return one.Instances > 0 })
	return p.printf("\n%s\n", s.Store.text(running))
}

// text says how full the store is and whether it is durable, which running processes know.
func (s storeStatus) text(running bool) string {
	text := "Store: " + bytesText(s.Bytes)
	if s.Limit > 0 {
		text += " of " + bytesText(s.Limit)
	}
	switch {
	case !running:
		return text
	case s.SyncAlways:
		return text + "; every message is on disk before it is acknowledged."
	}
	return fmt.Sprintf("%s\n! It is not known to write every message to disk at once, so no mail is moved or deleted. "+
		"See `posthorn doctor`.", text)
}
