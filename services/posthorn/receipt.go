package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/source"
)

type receiptCmd struct {
	What []string `arg:"" name:"mail" help:"Key of a mail, its Message-ID, or words: of the sender, the subject."`
	JSON bool     `help:"Print JSON."`
}

// Help says more.
func (receiptCmd) Help() string {
	return `Answers also when no request was made: left in the Inbox and why, set aside and why, or never seen. ` +
		`Words find at most 20 mails, the newest first. Ends with 1 when nothing is found.

Examples:

  posthorn receipt '<20261123.1042@mail.example.org>'
  posthorn receipt aino.makela@example.org
  posthorn receipt kitchen tap`
}

// receipts is what `receipt --json` prints.
type receipts struct {
	Query string    `json:"query"`
	Mails []receipt `json:"mails"`
	// Sources were looked through.
	Sources []contract.SourceRef `json:"sources"`
}

// receipt is the life of one mail.
type receipt struct {
	// Mail is the key, empty for a mail that was left on account of its headers alone.
	Mail       string             `json:"mail,omitempty"`
	Source     contract.SourceRef `json:"source"`
	From       *contract.Address  `json:"from,omitempty"`
	Subject    string             `json:"subject,omitempty"`
	MessageID  string             `json:"message_id,omitempty"`
	ReceivedAt *time.Time         `json:"received_at,omitempty"`
	// State is taken-in, left, dead or waiting.
	State string `json:"state"`
	// Request that the mail made or joined.
	Request string  `json:"request,omitempty"`
	Steps   []event `json:"steps"`
}

// event is one step in the life of a mail.
type event struct {
	At    time.Time `json:"at"`
	Stage string    `json:"stage"`
	// What happened: stored, parsed, skipped, evaluate, received, replied, another event of the request, ordered, one of
	// the outcomes of an order, or dead-letter.
	What string `json:"what"`
	// Code of the fault, or of the reason.
	Code string `json:"code,omitempty"`
	// Text is for people.
	Text string `json:"text,omitempty"`

	sequence uint64
}

// States of a receipt.
const (
	takenIn   = "taken-in"
	leftThere = "left"
	deadMail  = "dead"
	waiting   = "waiting"
)

// mostReceipts is how many mails words find.
const mostReceipts = 20

// Run finds mails and shows what happened to each.
func (c *receiptCmd) Run(p *program) error {
	query := strings.TrimSpace(strings.Join(c.What, " "))
	if query == "" {
		return usageError{"receipt takes the key of a mail, a Message-ID, or words"}
	}
	return p.withStore(func(conn *bus.Conn, store *source.Store) error {
		sources, err := store.List(p.ctx)
		if err != nil {
			return err
		}
		f := &finder{p: p, conn: conn, sources: sources}
		found, err := f.find(query)
		if err != nil {
			return err
		}
		answer := receipts{Query: query, Mails: []receipt{}, Sources: []contract.SourceRef{}}
		for _, s := range sources {
			answer.Sources = append(answer.Sources, s.Ref())
		}
		for _, one := range found {
			r, err := f.receipt(one)
			if err != nil {
				return err
			}
			answer.Mails = append(answer.Mails, r)
		}
		if c.JSON {
			err = p.printJSON(answer)
		} else {
			err = p.printReceipts(answer)
		}
		if err == nil && len(found) == 0 {
			return exitCode(exitFailed)
		}
		return err
	})
}

func (p *program) printReceipts(r receipts) error {
	if len(r.Mails) == 0 {
		names := make([]string, len(r.Sources))
		for i, s := range r.Sources {
			names[i] = plain(s.Name, 60) + " (" + s.ID + ")"
		}
		where := strings.Join(names, ", ")
		if where == "" {
			where = "no source: there are none"
		}
		return p.printf("%s: never seen. Looked through: %s.\nA mail that lies in another folder, Junk for example, "+
			"is not seen. One that came a moment ago may still be on its way: posthorn status\n", plain(r.Query, 200), where)
	}
	for i, one := range r.Mails {
		if i > 0 {
			if err := p.printf("\n"); err != nil {
				return err
			}
		}
		if err := p.printReceipt(one); err != nil {
			return err
		}
	}
	if len(r.Mails) == mostReceipts {
		return p.printf("\nThere may be more: these are the newest %d.\n", mostReceipts)
	}
	return nil
}

func (p *program) printReceipt(r receipt) error {
	name := plain(r.Source.Name, 60)
	if name == "" {
		name = r.Source.ID
	}
	lines := []string{
		person(r.From) + "  " + subject(r.Subject),
		"  " + map[string]string{
			takenIn: "taken in", leftThere: "left in the Inbox", deadMail: "set aside: a dead letter",
			waiting: "stored, on its way",
		}[r.State] + ", source " + name,
	}
	for _, field := range [][2]string{{"mail", r.Mail}, {"Message-ID", plain(r.MessageID, 200)}, {"request", r.Request}} {
		if field[1] != "" {
			lines = append(lines, "  "+field[0]+" "+field[1])
		}
	}
	if err := p.printf("%s\n", strings.Join(lines, "\n")); err != nil {
		return err
	}
	t := table{head: []string{"TIME", "STAGE", "WHAT", ""}, indent: "  "}
	for _, step := range r.Steps {
		text := plain(step.Text, 300)
		if step.Code != "" && step.What != "skipped" { // whose text says it all
			text = strings.TrimSpace(step.Code + " " + text)
		}
		t.add([]string{step.At.In(p.zone).Format(time.DateTime), step.Stage, step.What, text})
	}
	return t.print(p.out)
}

// reasonText explains why a mail was left in its Inbox.
func reasonText(reason string) string {
	text, ok := map[string]string{
		"skipped":      "not a reply, and the source takes in replies only",
		"not-reply":    "not a reply, and the source takes in replies only",
		"machine":      "sent by a machine, and the source takes in replies only",
		"unsure":       "it is not sure that this is a reply; it is looked at again",
		"oversize":     "larger than the source takes in",
		"before_start": "older than the start date of the source",
		"flagged":      "flagged as deleted by somebody else",
		"put_back":     "taken in before, and put back into the Inbox by a person",
	}[reason]
	if !ok {
		return reason
	}
	return text
}

// outcomeText explains what came of an order.
func outcomeText(d contract.Disposed) string {
	text := map[string]string{
		contract.OutcomeArchived: "moved to " + quoted(d.Mailbox),
		contract.OutcomeDeleted:  "deleted on its server",
		contract.OutcomeGone:     "no longer there: somebody else moved or deleted it",
		contract.OutcomeFlagged: "copied to " + quoted(d.Mailbox) +
			" and marked as deleted: the server removes no single mails",
		contract.OutcomeLeft:       "left where it is",
		contract.OutcomeSuperseded: "left where it is: the mailbox is another one now",
		contract.OutcomeMismatch:   "not touched: something else lies at its place now",
	}[d.Outcome]
	if d.Reason != "" {
		text = strings.TrimPrefix(text+": "+d.Reason, ": ")
	}
	return text
}

// settle puts the steps in order and says where the mail stands.
func (r *receipt) settle() {
	slices.SortStableFunc(r.Steps, func(a, b event) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.sequence, b.sequence))
	})
	r.State = waiting
	for _, step := range r.Steps {
		switch {
		case step.What == contract.EventReceived || step.What == contract.EventReplied:
			r.State = takenIn
		case step.What == "dead-letter" && r.State != takenIn:
			r.State = deadMail
		case step.What == "skipped" && r.State == waiting:
			r.State = leftThere
		case step.What == "evaluate" && r.State == leftThere:
			r.State = waiting
		}
	}
}

func attempts(n int) string { return fmt.Sprintf("after %s", count(n, "attempt", "attempts")) }
