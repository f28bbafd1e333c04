package mailbox

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/emersion/go-imap/v2/imapclient"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

// StepStatus is what came of one step of a connection test.
type StepStatus string

// The statuses. A step is skipped when one before it failed, or when it does not apply.
const (
	StepOK      StepStatus = "ok"
	StepWarn    StepStatus = "warn"
	StepFail    StepStatus = "fail"
	StepSkipped StepStatus = "skipped"
)

// Step is one step of a connection test. As JSON it is
// {"name","status","ms","facts","error":{"code","params","text"}}; what JSON gives is read back the same, text aside.
type Step struct {
	// Name is dns, policy, tcp, greeting, tls, capabilities, sign-in, inbox, archive, rights or backlog.
	Name     string
	Status   StepStatus
	Duration time.Duration
	// Facts are what was learnt, by name: addresses, address, hint_port, version, names, issuer, not_after,
	// capabilities, messages, uid_validity, uidl, mailbox, create, flagged, then, why.
	Facts map[string]string
	// Fault says what is wrong, of a step that warns or fails.
	Fault *fault.Error
}

type stepFault struct {
	Code   fault.Code   `json:"code"`
	Params fault.Params `json:"params,omitempty"`
	Text   fault.Text   `json:"text,omitzero"`
}

type stepJSON struct {
	Name   string            `json:"name"`
	Status StepStatus        `json:"status"`
	MS     int64             `json:"ms"`
	Facts  map[string]string `json:"facts,omitempty"`
	Error  *stepFault        `json:"error,omitempty"`
}

// MarshalJSON writes the step with the English text of its fault.
func (s Step) MarshalJSON() ([]byte, error) {
	out := stepJSON{Name: s.Name, Status: s.Status, MS: s.Duration.Milliseconds(), Facts: s.Facts}
	if s.Fault != nil {
		out.Error = &stepFault{Code: s.Fault.Code, Params: s.Fault.Params, Text: s.Fault.Text("en")}
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (s *Step) UnmarshalJSON(data []byte) error {
	var in stepJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*s = Step{Name: in.Name, Status: in.Status, Duration: time.Duration(in.MS) * time.Millisecond, Facts: in.Facts}
	if in.Error != nil {
		s.Fault = fault.New(in.Error.Code, nil, in.Error.Params)
	}
	return nil
}

// TestOptions say what the source will do with its mail.
type TestOptions struct {
	Disposition contract.Disposition
	// Archive is the configured name of the archive mailbox.
	Archive string
}

// MostWithoutUIDL is how many mails may be left on a POP3 server that gives them no identity: each is read every time.
const MostWithoutUIDL = 1000

// ExpirySoon is how long before its end a certificate is warned about.
const ExpirySoon = 14 * 24 * time.Hour

// allSteps in the order in which those that were not taken are reported as skipped.
var allSteps = []string{stepDNS, stepPolicy, stepTCP, stepTLS, stepGreeting, stepCapabilities, stepSignIn, stepInbox,
	stepArchive, stepRights, stepBacklog}

// Test tries a source out and reports every step as it is done, each step once. It only looks: it makes no mailbox,
// opens the Inbox with EXAMINE, and marks, moves and deletes nothing. It returns why the first step failed, or nil.
func Test(ctx context.Context, settings Settings, options TestOptions, report func(Step)) error {
	t := &tester{ctx: ctx, options: options, report: report, done: map[string]bool{}}
	session, err := open(ctx, settings, Read, t.opened)
	if err == nil {
		defer func() { _ = session.Close() }() // nothing depends on it
		err = t.look(session, &settings)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil && t.failed == nil {
		// Refused before the first step, such as a line break in the password.
		t.step(Step{Name: stepSignIn, Status: StepFail, Fault: fault.As(err)})
	}
	for _, name := range allSteps {
		if !t.done[name] {
			t.step(Step{Name: name, Status: StepSkipped})
		}
	}
	if t.failed != nil {
		return t.failed
	}
	return nil
}

type tester struct {
	ctx     context.Context // lives for one call
	options TestOptions
	report  func(Step)
	done    map[string]bool
	failed  *fault.Error
}

func (t *tester) step(s Step) {
	if t.done[s.Name] {
		return
	}
	t.done[s.Name] = true
	if s.Status == StepFail && t.failed == nil {
		t.failed = s.Fault
	}
	t.report(s)
}

// opened is told about the steps of opening.
func (t *tester) opened(name string, took time.Duration, facts map[string]string, err error) {
	if t.ctx.Err() != nil {
		return
	}
	s := Step{Name: name, Status: StepOK, Duration: took, Facts: facts}
	if err != nil {
		s.Status, s.Fault = StepFail, fault.As(err)
	} else if until, parseErr := time.Parse(time.RFC3339, facts["not_after"]); parseErr == nil &&
		time.Until(until) < ExpirySoon {
		s.Status = StepWarn
		s.Fault = fault.New(fault.TLSExpiresSoon, nil, fault.Params{"until": until.Format(time.DateOnly)})
	}
	t.step(s)
}

// look examines what the session shows.
func (t *tester) look(session Session, settings *Settings) error {
	then := map[string]string{"then": string(t.options.Disposition)}
	switch session := session.(type) {
	case *imapSession:
		if err := t.imapArchive(session, then); err != nil {
			return err
		}
		if err := t.imapRights(session); err != nil {
			return err
		}
	case *popSession:
		t.popArchive(session, settings)
	}
	began := time.Now()
	entries, err := session.List(t.ctx)
	s := Step{Name: stepBacklog, Status: StepOK, Duration: time.Since(began), Facts: then}
	if err != nil {
		s.Status, s.Fault = StepFail, fault.As(err)
		t.step(s)
		return err
	}
	flagged := 0
	for _, e := range entries {
		if e.Deleted {
			flagged++
		}
	}
	then["messages"] = strconv.Itoa(len(entries))
	then["flagged"] = strconv.Itoa(flagged)
	t.step(s)
	return nil
}

func (t *tester) imapArchive(session *imapSession, then map[string]string) error {
	if t.options.Disposition == contract.Leave {
		return nil
	}
	began := time.Now()
	s := Step{Name: stepArchive, Status: StepOK, Facts: map[string]string{}}
	if t.options.Disposition == contract.Archive {
		name := t.options.Archive
		if name == "" {
			name = defaultArchive
		}
		mailbox, err := session.archiveMailbox(t.ctx, name, false)
		switch {
		case err != nil:
			s.Status, s.Fault = StepFail, fault.As(err)
			s.Duration = time.Since(began)
			t.step(s)
			return err
		case mailbox == "":
			s.Facts["create"] = name // it will be made when the first mail is moved
			then["mailbox"] = name
		default:
			s.Facts["mailbox"] = mailbox
			then["mailbox"] = mailbox
		}
	}
	if !session.caps["UIDPLUS"] && (t.options.Disposition == contract.Delete || !session.caps["MOVE"]) {
		s.Status, s.Fault = StepWarn, fault.New(fault.ArchiveNoMove, nil, nil)
	}
	s.Duration = time.Since(began)
	t.step(s)
	return nil
}

// imapRights asks for the rights in the Inbox where the server can tell (RFC 4314). Elsewhere only opening the Inbox
// for changing would show them, which a test does not do.
func (t *tester) imapRights(session *imapSession) error {
	if t.options.Disposition == contract.Leave {
		return nil
	}
	began := time.Now()
	s := Step{Name: stepRights, Status: StepOK}
	if !session.caps["ACL"] {
		s.Status, s.Facts = StepSkipped, map[string]string{"why": "the server tells only when the first mail is moved"}
		t.step(s)
		return nil
	}
	var data *imapclient.MyRightsData
	err := session.command(t.ctx, "MYRIGHTS", budgetControl, func() (err error) {
		data, err = session.client.MyRights("INBOX").Wait()
		return err
	})
	s.Duration = time.Since(began)
	if err != nil {
		if session.dead() {
			s.Status, s.Fault = StepFail, fault.As(err)
			t.step(s)
			return err
		}
		s.Status = StepSkipped
		t.step(s)
		return nil
	}
	held := map[rune]bool{}
	for _, right := range string(data.Rights) {
		held[right] = true
	}
	if !held['d'] && (!held['t'] || !held['e']) {
		s.Status, s.Fault = StepWarn, fault.New(fault.MailboxReadOnly, errors.New("rights "+string(data.Rights)), nil)
	}
	t.step(s)
	return nil
}

// popArchive looks whether mails can be left on the server and told apart.
func (t *tester) popArchive(session *popSession, settings *Settings) {
	status := session.Status()
	if status.HasUIDL || t.options.Disposition == contract.Delete || status.Messages == 0 {
		return
	}
	s := Step{Name: stepArchive, Status: StepWarn,
		Fault: fault.New(fault.MailboxNoUIDL, nil, params(settings, "most", strconv.Itoa(MostWithoutUIDL)))}
	if status.Messages > MostWithoutUIDL {
		s.Status = StepFail
	}
	t.step(s)
}
