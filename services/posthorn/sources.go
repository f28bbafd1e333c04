package main

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/source"
	"posthorn/pkg/stage"
)

type sourcesCmd struct {
	List   sourcesListCmd   `cmd:"" help:"List all sources with their state."`
	Show   sourcesShowCmd   `cmd:"" help:"Show everything about one source, but its password."`
	Apply  sourcesApplyCmd  `cmd:"" help:"Make the sources be as a file says."`
	Test   sourcesTestCmd   `cmd:"" help:"Try the connection of a source, step by step, without changing anything."`
	Trace  sourcesTraceCmd  `cmd:"" help:"${help_sources_trace}"`
	Pause  sourcesPauseCmd  `cmd:"" help:"Stop taking in mail of a source."`
	Resume sourcesResumeCmd `cmd:"" help:"Go on with a paused source."`
	Retry  sourcesRetryCmd  `cmd:"" help:"Try a failing source now instead of at its next time."`
	Remove sourcesRemoveCmd `cmd:"" help:"Remove a source. What it took in stays; its mailbox is left as it is."`
}

// Help says more.
func (sourcesCmd) Help() string {
	return `NAME is the id or the name of a source.

Examples:

  posthorn sources apply -f sources.yaml --dry-run
  posthorn sources apply -f sources.yaml
  posthorn sources test sales
  posthorn sources list`
}

// shownSource is a source as JSON shows it: the record without its secret, and what the record's place says.
type shownSource struct {
	source.Source

	Auth     source.AuthType `json:"auth"` // instead of the sealed password
	Shard    int             `json:"shard"`
	Revision uint64          `json:"revision"`
	State    source.State    `json:"state"`
}

// shown adds their states to sources. How much was taken in and set aside is counted in the streams.
func (p *program) shown(conn *bus.Conn, sources []source.Source) ([]shownSource, error) {
	bucket, err := conn.Bucket(p.ctx, bus.BucketSourceState)
	if err != nil {
		return nil, err
	}
	states, err := source.Shown(p.ctx, stage.Records(bucket), sources, p.now())
	if err != nil {
		return nil, err
	}
	shown := make([]shownSource, len(sources))
	for i, s := range sources {
		taken, err := conn.Count(p.ctx, contract.StreamContactRequests,
			contract.ContactRequestSubject(contract.EventReceived, "*", s.ID, "*"),
			contract.ContactRequestSubject(contract.EventReplied, "*", s.ID, "*"))
		if err != nil {
			return nil, err
		}
		dead, err := conn.Count(p.ctx, contract.StreamDeadLetters, contract.DeadLetterSubject("*", s.ID, "*"))
		if err != nil {
			return nil, err
		}
		states[i].TakenIn, states[i].Dead = whole(taken), whole(dead)
		shown[i] = shownSource{
			Source: s.Shown(), Auth: s.Auth.Type, Shard: contract.Shard(s.ID), Revision: s.Revision, State: states[i],
		}
	}
	return shown, nil
}

type sourcesListCmd struct {
	JSON bool `help:"Print JSON."`
}

// Run lists the sources.
func (c *sourcesListCmd) Run(p *program) error {
	return p.withStore(func(conn *bus.Conn, store *source.Store) error {
		sources, err := store.List(p.ctx)
		if err != nil {
			return err
		}
		shown, err := p.shown(conn, sources)
		if err != nil {
			return err
		}
		if c.JSON {
			return p.printJSON(map[string]any{"sources": shown})
		}
		return p.printSources(shown)
	})
}

// printSources prints the table of sources, the ones that need somebody first, each with the reason below.
func (p *program) printSources(shown []shownSource) error {
	if len(shown) == 0 {
		return p.printf("There are no sources yet. `posthorn sources apply -f FILE` adds some; see README.md for the file.\n")
	}
	slices.SortStableFunc(shown, func(a, b shownSource) int { return urgency(a.State.State) - urgency(b.State.State) })
	t := table{head: []string{"STATE", "ID", "NAME", "SERVER", "WORKFLOW", "LAST FULL CHECK"}}
	for _, s := range shown {
		t.add([]string{
			mark(s.State.State), s.ID, plain(s.Name, 40), fmt.Sprintf("%s:%d", s.Server, s.Port), s.DefaultWorkflow,
			ago(s.State.LastCycle, p.now()),
		}, p.reasons(s)...)
	}
	return t.print(p.out)
}

// urgency orders states: what needs somebody first.
func urgency(state source.StateName) int {
	return slices.Index([]source.StateName{
		source.StateFailing, source.StateStale, source.StateDegraded, source.StateConnecting, source.StateOK,
		source.StatePaused,
	}, state)
}

// mark is a state with a sign, so that it is seen without reading.
func mark(s source.StateName) string {
	signs := map[source.StateName]string{
		source.StateFailing: "▲", source.StateStale: "!", source.StateDegraded: "!", source.StateConnecting: "…",
		source.StateOK: "●", source.StatePaused: "‖",
	}
	return signs[s] + " " + string(s)
}

// reasons say why a source is not well, and what to do.
func (p *program) reasons(shown shownSource) []string {
	var lines []string
	s := shown.State
	switch s.State {
	case source.StatePaused:
		who := "by " + plain(s.PausedBy, 60)
		if s.PausedBy == source.ByFile {
			who = "by the sources file"
		}
		lines = append(lines, "paused "+who+", "+ago(s.Since, p.now())+". Go on with: posthorn sources resume "+s.ID)
	case source.StateStale:
		lines = append(lines, "not checked completely for "+span(p.now().Sub(s.Since))+
			". Is its fetcher running? See `posthorn status`.")
	}
	if e := s.Error; e != nil {
		line := plain(e.Text, 300) + " (" + string(e.Code) + "), since " + p.clock(e.Since)
		if s.NextTry.After(p.now()) {
			line += ", next try " + p.clock(s.NextTry)
		}
		lines = append(lines, line)
		if e.Now != "" {
			lines = append(lines, "now: "+plain(e.Now, 400))
		}
		if e.You != "" {
			lines = append(lines, "you: "+plain(e.You, 400))
		}
	}
	if badge := plainBadge(shown.Source); badge != "" {
		lines = append(lines, "! "+badge)
	}
	for _, note := range s.Notes {
		lines = append(lines, "note: "+plain(note, 400))
	}
	return lines
}

// plainBadge says that a connection is plain text, "" when it is not.
func plainBadge(s source.Source) string {
	switch ip := net.ParseIP(s.Server); {
	case s.SSL:
		return ""
	case ip.IsLoopback() || s.Server == "localhost":
		return "not encrypted, within this machine"
	default:
		return "not encrypted: passwords and mail can be read on the way"
	}
}

type sourcesShowCmd struct {
	Name string `arg:"" help:"Id or name of the source."`
	JSON bool   `help:"Print JSON."`
}

// Run shows one source.
func (c *sourcesShowCmd) Run(p *program) error {
	return p.withStore(func(conn *bus.Conn, store *source.Store) error {
		s, err := p.find(store, c.Name)
		if err != nil {
			return err
		}
		shown, err := p.shown(conn, []source.Source{s})
		if err != nil {
			return err
		}
		if c.JSON {
			return p.printJSON(shown[0])
		}
		return p.printSource(shown[0])
	})
}

func (p *program) printSource(s shownSource) error {
	security := "SSL"
	switch s.Security() {
	case "starttls":
		security = "SSL by STARTTLS"
	case "plain":
		security = "not encrypted"
	}
	if s.CA != "" {
		security += ", private CA"
	}
	after := string(s.AfterFetch)
	switch {
	case s.AfterFetch == contract.Archive && s.Type == "imap":
		after = "archive: moved to " + quoted(s.ArchiveMailbox)
	case s.AfterFetch == contract.Archive:
		after = "archive: left on the server and remembered (POP3 has no mailboxes)"
	case s.AfterFetch == contract.Delete:
		after = "delete: deleted on the server"
	case s.AfterFetch == contract.Leave:
		after = "leave: left in the Inbox as it is"
	}
	managed := "here"
	if s.ManagedBy == source.ByFile {
		managed = "by a sources file"
	}
	fields := [][2]string{
		{"id", s.ID}, {"name", plain(s.Name, 200)}, {"description", plain(s.Description, 2000)},
		{"address", plain(s.Address, 320)},
		{"server", fmt.Sprintf("%s %s:%d, %s", s.Type, s.Server, s.Port, security)},
		{"user name", plain(s.Username, 320)}, {"sign-in", string(s.Auth)},
		{"workflow", s.DefaultWorkflow}, {"after fetching", after},
		{"takes in", takesIn(s.Source)}, {"largest mail", s.MaxSize.String()}, {"polled every", s.PollInterval.String()},
		{"managed", managed}, {"created", p.clock(s.CreatedAt)}, {"epoch", s.Epoch},
		{"shard", fmt.Sprint(s.Shard)}, {"revision", fmt.Sprint(s.Revision)},
		{"state", mark(s.State.State)}, {"last full check", ago(s.State.LastCycle, p.now())},
	}
	for _, field := range fields {
		if field[1] == "" {
			continue
		}
		if err := p.printf("%-16s %s\n", field[0], field[1]); err != nil {
			return err
		}
	}
	for _, line := range p.reasons(s) {
		if err := p.printf("%-16s %s\n", "", line); err != nil {
			return err
		}
	}
	counts := s.State.Counts
	left := strconv.Itoa(counts.Left) + " left on purpose"
	if by := leftBy(counts.LeftBy); by != "" {
		left += " (" + by + ")"
	}
	return p.printf("%-16s %s, of them %s; waiting %d, unaccounted %d\n", "in the Inbox",
		count(counts.Inbox, "mail", "mails"), left, counts.Waiting, counts.Unaccounted)
}

// leftBy says why mails were left.
func leftBy(by map[string]int) string {
	var parts []string
	for _, reason := range sortedKeys(by) {
		word, ok := map[string]string{
			"skipped": "not a reply", "unsure": "perhaps a reply", "oversize": "too large",
			"before_start": "before the start", "flagged": "marked as deleted", "put_back": "put back",
		}[reason]
		if !ok {
			word = reason
		}
		parts = append(parts, fmt.Sprintf("%s: %d", word, by[reason]))
	}
	return strings.Join(parts, ", ")
}

func takesIn(s source.Source) string {
	text := "all mail"
	if s.RepliesOnly {
		text = "replies only, evidence " + string(s.ReplyEvidence)
	}
	switch {
	case s.ImportFromNow():
		text += ", none that was there before " + s.Boundary.UTC().Format(time.RFC3339)
	case !s.Boundary.IsZero():
		text += ", received from " + s.Boundary.UTC().Format(time.RFC3339) + " on"
	}
	return text
}

type sourcesApplyCmd struct {
	File         string `short:"f" required:"" type:"path" placeholder:"FILE" help:"The sources file (YAML)."`
	Prune        bool   `help:"${help_sources_prune}"`
	DryRun       bool   `help:"Say what would be done, and do nothing."`
	AllowedPorts ports  `placeholder:"PORT,…" help:"${help_sources_allowed_ports}"`
	JSON         bool   `help:"Print JSON."`
}

// Help says more.
func (sourcesApplyCmd) Help() string {
	return `The whole file is checked before anything is changed. Applying it twice changes nothing the second time. ` +
		`Sources from a file are read-only elsewhere. One that is no longer in the file is paused and reported. ` +
		`Passwords are sealed with the key file of the running program (--key-file).`
}

// Run applies a file.
func (c *sourcesApplyCmd) Run(p *program) error {
	file, loadErr := source.LoadFile(c.File, os.LookupEnv)
	conn, err := p.connect()
	if err != nil {
		return cmp.Or(loadErr, err)
	}
	defer conn.Close()
	keys, err := p.keys()
	if err != nil {
		return err
	}
	store, err := p.store(conn, keys, c.AllowedPorts)
	if err != nil {
		return err
	}
	if loadErr != nil {
		return source.Explain(p.ctx, store, file, loadErr)
	}
	report, err := source.Apply(p.ctx, store, file, source.ApplyOptions{Prune: c.Prune, By: p.user, DryRun: c.DryRun})
	if err != nil {
		return err
	}
	if c.JSON {
		return p.printJSON(struct {
			source.Report

			DryRun bool `json:"dry_run,omitempty"`
		}{report, c.DryRun})
	}
	return printReport(p.out, report, c.DryRun)
}

func printReport(w io.Writer, r source.Report, dry bool) error {
	var b strings.Builder
	say := func(what string, ids []string) {
		if len(ids) > 0 {
			fmt.Fprintf(&b, "%-12s%s\n", what, strings.Join(ids, ", "))
		}
	}
	changed := make([]string, len(r.Changed))
	for i, id := range r.Changed {
		changed[i] = id + " (" + strings.Join(r.Fields[id], ", ") + ")"
	}
	say("workflows", r.Workflows)
	say("created", r.Created)
	say("changed", changed)
	say("removed", r.Removed)
	say("paused", r.Paused)
	say("unchanged", r.Unchanged)
	if len(r.Missing) > 0 {
		fmt.Fprintf(&b, "no longer in the file, and paused: %s; --prune removes them\n", strings.Join(r.Missing, ", "))
	}
	switch {
	case dry:
		b.WriteString("Nothing was changed: this was a dry run.\n")
	case len(r.Created) > 0:
		fmt.Fprintf(&b, "See how they do: posthorn sources list\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

type sourcesPauseCmd struct {
	Name string `arg:"" help:"Id or name of the source."`
}

// Run pauses a source.
func (c *sourcesPauseCmd) Run(p *program) error {
	return p.onSource(c.Name, func(store *source.Store, s source.Source) error {
		if _, err := store.Pause(p.ctx, s.ID, p.user); err != nil {
			return err
		}
		return p.printf("%s is paused; its mail waits in its Inbox. Go on with: posthorn sources resume %s\n", s.ID, s.ID)
	})
}

type sourcesResumeCmd struct {
	Name string `arg:"" help:"Id or name of the source."`
}

// Run resumes a source.
func (c *sourcesResumeCmd) Run(p *program) error {
	return p.onSource(c.Name, func(store *source.Store, s source.Source) error {
		if _, err := store.Resume(p.ctx, s.ID, p.user); err != nil {
			return err
		}
		return p.printf("%s goes on. See how it does: posthorn status\n", s.ID)
	})
}

type sourcesRetryCmd struct {
	Name string `arg:"" help:"Id or name of the source."`
}

// Run retries a source.
func (c *sourcesRetryCmd) Run(p *program) error {
	return p.onSource(c.Name, func(store *source.Store, s source.Source) error {
		if s.Paused {
			return fmt.Errorf("%s is paused: go on with `posthorn sources resume %s`", s.ID, s.ID)
		}
		if err := store.Retry(p.ctx, s.ID, p.user); err != nil {
			return err
		}
		return p.printf("%s is tried now. See how it does: posthorn status\n", s.ID)
	})
}

type sourcesRemoveCmd struct {
	Name string `arg:"" help:"Id or name of the source."`
}

// Run removes a source.
func (c *sourcesRemoveCmd) Run(p *program) error {
	return p.onSource(c.Name, func(store *source.Store, s source.Source) error {
		if err := store.Delete(p.ctx, s.ID, s.Revision, p.user); err != nil {
			return err
		}
		return p.printf("%s is removed. What it took in stays; mails still to be moved are left where they are.\n", s.ID)
	})
}

// onSource calls do with the source that a person names.
func (p *program) onSource(name string, do func(*source.Store, source.Source) error) error {
	return p.withStore(func(_ *bus.Conn, store *source.Store) error {
		s, err := p.find(store, name)
		if err != nil {
			return err
		}
		if err := do(store, s); err != nil {
			return fmt.Errorf("source %s: %w", s.ID, err)
		}
		return nil
	})
}
