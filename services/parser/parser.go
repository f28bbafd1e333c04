// Package parser turns raw mails into parsed ones, behind limits that no mail can break, and has the last word on the
// replies-only rule. It drops nothing: a mail that cannot be read goes on with what its header says. It also hands out
// the stored content of mails on request.
package parser

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/semaphore"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/reply"
	"posthorn/pkg/stage"
)

// Parser is the second stage. Create it with [New], start it with Run.
type Parser struct {
	cfg     Config
	deps    stage.Deps
	log     *slog.Logger
	memory  *semaphore.Weighted
	sent    *bus.Bucket
	skipped *bus.Bucket
	objects *bus.Objects
}

// New checks the configuration. Nothing is opened before Run.
func New(cfg Config, deps stage.Deps) (*Parser, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return &Parser{
		cfg: cfg, deps: deps, log: deps.Log.With("stage", "parser"), memory: semaphore.NewWeighted(cfg.Memory),
	}, nil
}

// Run parses mails and answers content requests until ctx ends and the mails in hand are done. ready is called once,
// when mails are being taken.
func (p *Parser) Run(ctx context.Context, ready func()) error {
	if err := p.open(ctx); err != nil {
		return fmt.Errorf("parser: %w", err)
	}
	work, err := stage.NewWork("parser", p.deps.Conn, p.deps.Publisher, p.deps.Metrics, p.log)
	if err != nil {
		return fmt.Errorf("parser: %w", err)
	}
	work.Handle(stage.Input{Stream: contract.StreamMail, Durable: bus.DurableParser, Workers: p.cfg.Workers}, p.parse)
	work.Handle(stage.Input{
		Stream: contract.StreamParsed, Durable: bus.DurableParserEvaluate, Workers: p.cfg.Workers,
	}, p.evaluate)
	if err := p.answerContent(ctx); err != nil {
		return fmt.Errorf("parser: %w", err)
	}
	if err := work.Run(ctx, ready); err != nil {
		return fmt.Errorf("parser: %w", err)
	}
	return nil
}

func (p *Parser) open(ctx context.Context) (err error) {
	if p.sent, err = p.deps.Conn.Bucket(ctx, bus.BucketSentIndex); err != nil {
		return err
	}
	if p.skipped, err = p.deps.Conn.Bucket(ctx, bus.BucketSkipped); err != nil {
		return err
	}
	p.objects, err = p.deps.Conn.Objects(ctx, contract.ObjectBucket)
	return err
}

// parse handles a raw mail as it was fetched.
func (p *Parser) parse(msg *message.Message) error {
	stored, ok := bus.StoredOf(msg)
	if !ok {
		return fault.New(fault.StoreUnknown, errors.New("a message without its place in the stream"), nil)
	}
	mail, err := readStored(stored)
	if err != nil {
		return err
	}
	return p.handle(msg.Context(), mail)
}

// evaluate handles the order to look at a stored mail again, for another place or under another stamp.
func (p *Parser) evaluate(msg *message.Message) error {
	ctx := msg.Context()
	var order contract.Evaluate
	if err := json.Unmarshal(msg.Payload, &order); err != nil {
		return fault.New(fault.MailFailed, err, nil)
	}
	stored, err := p.deps.Conn.Last(ctx, contract.StreamMail, contract.RawSubject(order.Stamp.Source.ID, order.Mail))
	if errors.Is(err, bus.ErrNotFound) {
		return nil // left in the meantime, its bytes erased: the fetcher fetches it again if it is wanted
	}
	if err != nil {
		return err
	}
	mail, err := readStored(*stored)
	if err != nil {
		return err
	}
	mail.stamp, mail.place = order.Stamp, order.Place
	return p.handle(ctx, mail)
}

// storedMail is a raw mail as it lies in the store.
type storedMail struct {
	key        string
	stamp      contract.Stamp
	place      contract.Place
	receivedAt time.Time
	raw        contract.Raw
	body       []byte // empty when the mail is an object
	partial    string // the announced size, when only the header was taken in
}

func readStored(stored bus.Stored) (storedMail, error) {
	_, key, err := contract.RawKeys(stored.Subject)
	if err != nil {
		return storedMail{}, fault.New(fault.MailFailed, err, nil)
	}
	mail := storedMail{
		key: key, body: stored.Body, partial: stored.Header[contract.HeaderPartial],
		raw: contract.Raw{
			SHA256: stored.Header[contract.HeaderSHA256], Stream: string(stored.Stream), Sequence: stored.Sequence,
			Object: stored.Header[contract.HeaderObject],
		},
	}
	errs := []error{
		json.Unmarshal([]byte(stored.Header[contract.HeaderStamp]), &mail.stamp),
		json.Unmarshal([]byte(stored.Header[contract.HeaderPlace]), &mail.place),
	}
	mail.raw.Size, err = strconv.ParseInt(stored.Header[contract.HeaderSize], 10, 64)
	errs = append(errs, err)
	mail.receivedAt, err = time.Parse(time.RFC3339, stored.Header[contract.HeaderReceivedAt])
	if err := errors.Join(append(errs, err)...); err != nil {
		return storedMail{}, fault.New(fault.MailFailed, err, nil)
	}
	return mail, nil
}

// opener opens the bytes of a stored mail, as often as needed.
func (p *Parser) opener(ctx context.Context, mail storedMail) Opener {
	return func() (io.ReadCloser, error) {
		if mail.raw.Object != "" {
			return p.objects.Open(ctx, mail.raw.Object)
		}
		return io.NopCloser(bytes.NewReader(mail.body)), nil
	}
}

// handle reads one mail and decides: on to the router, or left in its mailbox.
func (p *Parser) handle(ctx context.Context, mail storedMail) error {
	weight := min(max(mail.raw.Size, 64<<10), p.cfg.Memory)
	if err := p.memory.Acquire(ctx, weight); err != nil {
		return err
	}
	defer p.memory.Release(weight)
	parsed, err := Read(ctx, p.opener(ctx, mail), mail.raw.Size, p.cfg.Limits)
	if errors.Is(err, bus.ErrNotFound) {
		return nil // erased since the message was delivered
	}
	if err != nil {
		return err
	}
	content := parsed.Content
	content.ReceivedAt, content.Raw = mail.receivedAt, mail.raw
	if mail.partial != "" {
		content.Parse.Status = "limits"
		content.Parse.Warnings = append(content.Parse.Warnings, "oversize: "+mail.partial+" bytes")
	}
	verdict, err := p.decide(ctx, mail.stamp, parsed)
	if err != nil {
		return err
	}
	content.Reply, content.Machine = verdict.Contract(), verdict.Machine
	if mail.stamp.RepliesOnly && verdict.Verdict != reply.Reply {
		before, err := p.decided(ctx, mail)
		if err != nil {
			return err
		}
		if !before { // what has made a request stays one, whatever the rule says by now
			return p.leave(ctx, mail, content)
		}
	}
	return p.pass(ctx, mail, content)
}

// decide asks the replies-only rule, with the sent index at hand.
func (p *Parser) decide(ctx context.Context, stamp contract.Stamp, parsed Parsed) (reply.Verdict, error) {
	var failed error
	verdict := reply.Decide(reply.Input{
		Header:       parsed.Header,
		OwnAddresses: []string{stamp.Source.Address},
		Evidence:     stamp.Evidence,
		SentReady:    stamp.Evidence == reply.EvidenceSent,
		PartClass:    parsed.PartClass,
		Sent: func(id string) bool {
			key := contract.MessageIDKey(stamp.Source.ID, id)
			if key == "" {
				return false
			}
			_, err := p.sent.Get(ctx, stamp.Source.ID+"."+key)
			if err != nil && !errors.Is(err, bus.ErrNotFound) {
				failed = err
			}
			return err == nil
		},
	})
	return verdict, failed // without the index nothing is decided
}

// decided tells whether the mail has made its event already.
func (p *Parser) decided(ctx context.Context, mail storedMail) (bool, error) {
	filter := contract.ContactRequestFilter(mail.stamp.Source.ID, mail.key)
	_, err := p.deps.Conn.Last(ctx, contract.StreamContactRequests, filter)
	if errors.Is(err, bus.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// pass hands the parsed mail to the router.
func (p *Parser) pass(ctx context.Context, mail storedMail, content contract.Content) error {
	body := contract.ParsedMail{Mail: mail.key, Stamp: mail.stamp, Place: mail.place, Content: content}
	return p.publish(ctx, mail, contract.TypeParsed, contract.ParsedSubject(mail.stamp.Source.ID), content.MessageID, body)
}

// leave decides that a mail stays in its mailbox: the decision is written, told with its reasons and without content,
// and the bytes are erased.
func (p *Parser) leave(ctx context.Context, mail storedMail, content contract.Content) error {
	source := mail.stamp.Source.ID
	decision, err := json.Marshal(contract.Skipped{Verdict: content.Reply.Verdict, Revision: mail.stamp.Revision})
	if err != nil {
		return err
	}
	if _, err := p.skipped.Put(ctx, source+"."+mail.key, decision); err != nil {
		return err
	}
	reason := "skipped"
	if content.Reply.Verdict == reply.Unsure {
		reason = "unsure"
	}
	err = p.publish(ctx, mail, contract.TypeSkipped, contract.SkippedSubject(source), content.MessageID,
		contract.SkippedMail{
			Mail: mail.key, Source: mail.stamp.Source, Place: mail.place, MessageID: content.MessageID, From: content.From,
			Subject: content.Subject, ReceivedAt: content.ReceivedAt, SkippedAt: time.Now().UTC(), Reason: reason,
			Reply: content.Reply, Stage: "parser",
		})
	if err != nil {
		return err
	}
	if mail.raw.Object != "" {
		if err := p.objects.SecureDelete(ctx, mail.raw.Object); err != nil && !errors.Is(err, bus.ErrNotFound) {
			return err
		}
	}
	err = p.deps.Conn.SecureDelete(ctx, contract.StreamMail, mail.raw.Sequence)
	if errors.Is(err, bus.ErrNotFound) {
		return nil
	}
	return err
}

// publish stores an event about one place of one mail; the same event for the same place and stamp has the same id.
func (p *Parser) publish(
	ctx context.Context, mail storedMail, kind, subject, messageID string, body any,
) error {
	place, err := json.Marshal(mail.place)
	if err != nil {
		return err
	}
	source := mail.stamp.Source.ID
	id := contract.EventID(mail.key, kind+string(place)+strconv.FormatUint(mail.stamp.Revision, 10), 1)
	out, err := bus.Event(kind, subject, id, source, body)
	if err != nil {
		return fault.New(fault.MailFailed, err, nil)
	}
	out.About(mail.key)
	if key := contract.MessageIDKey(source, messageID); key != "" {
		out.Header[contract.HeaderMessageID] = key
	}
	_, err = p.deps.Publisher.Publish(ctx, out)
	return err
}
