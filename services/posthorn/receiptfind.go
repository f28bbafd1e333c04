package main

import (
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/reply"
	"posthorn/pkg/source"
)

// finder looks for mails in the streams.
type finder struct {
	p       *program
	conn    *bus.Conn
	sources []source.Source
}

// finding is one mail that was found: by its key, or, when it was left on account of its headers, by the event that
// says so.
type finding struct {
	source, mail string
	skipped      *contract.SkippedMail
	at           time.Time
}

var mailKey = regexp.MustCompile(`^[a-z2-7]{32}$`)

// find looks for a key, for a Message-ID, and for words, in this order, until something is found.
func (f *finder) find(query string) ([]finding, error) {
	if mailKey.MatchString(query) {
		found, err := f.byKey(query)
		if err != nil || len(found) > 0 {
			return found, err
		}
	}
	if !strings.ContainsAny(query, " \t") || strings.HasPrefix(query, "<") {
		found, err := f.byMessageID(query)
		if err != nil || len(found) > 0 {
			return found, err
		}
	}
	return f.byWords(query)
}

// byKey finds the source of a mail's key.
func (f *finder) byKey(key string) ([]finding, error) {
	for _, place := range []struct {
		stream contract.Stream
		filter string
	}{
		{contract.StreamMail, contract.RawSubject("*", key)},
		{contract.StreamContactRequests, contract.ContactRequestFilter("*", key)},
		{contract.StreamDeadLetters, contract.DeadLetterSubject("*", "*", key)},
	} {
		stored, err := f.conn.Last(f.p.ctx, place.stream, place.filter)
		if errors.Is(err, bus.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		parts := strings.Split(stored.Subject, ".")
		return []finding{{source: parts[len(parts)-2], mail: key}}, nil
	}
	// The bytes of a mail that was left are erased: only the event that says so knows its key.
	left, err := f.skipped(func(header map[string]string) bool { return header[contract.HeaderMail] == key }, nil)
	return distinct(left), err
}

// byMessageID finds mails of every source by their Message-ID.
func (f *finder) byMessageID(id string) ([]finding, error) {
	threads, err := f.conn.Bucket(f.p.ctx, bus.BucketThreads)
	if err != nil {
		return nil, err
	}
	var found []finding
	keys := map[string]bool{}
	for _, s := range f.sources {
		key := contract.MessageIDKey(s.ID, id)
		if key == "" {
			continue
		}
		keys[key] = true
		filed, err := threads.List(f.p.ctx, s.ID+"."+key+".>")
		if err != nil {
			return nil, err
		}
		if first, err := threads.Get(f.p.ctx, s.ID+"."+key); err == nil {
			filed = append([]bus.Entry{first}, filed...)
		} else if !errors.Is(err, bus.ErrNotFound) {
			return nil, err
		}
		for _, entry := range filed {
			var thread struct {
				Mail string `json:"mail"`
			}
			if json.Unmarshal(entry.Value, &thread) == nil && thread.Mail != "" {
				found = append(found, finding{source: s.ID, mail: thread.Mail})
			}
		}
	}
	if len(keys) == 0 {
		return nil, nil
	}
	skipped, err := f.skipped(func(header map[string]string) bool { return keys[header[contract.HeaderMessageID]] }, nil)
	if err != nil {
		return nil, err
	}
	dead, err := f.dead(func(header map[string]string, c contract.Content) bool {
		return keys[header[contract.HeaderMessageID]] ||
			c.MessageID != "" && contract.NormalMessageID(c.MessageID) == contract.NormalMessageID(id)
	})
	if err != nil {
		return nil, err
	}
	return distinct(slices.Concat(found, skipped, dead)), nil
}

// byWords finds mails whose sender, subject or Message-ID hold all the words, the newest first.
func (f *finder) byWords(query string) ([]finding, error) {
	words := strings.Fields(strings.ToLower(query))
	matches := func(from *contract.Address, subject, id string) bool {
		text := strings.ToLower(subject + " " + id)
		if from != nil {
			text += " " + strings.ToLower(from.Name+" "+from.Address)
		}
		return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(text, word) })
	}
	requests, err := f.requests(func(c contract.ContactRequest) bool { return matches(c.From, c.Subject, c.MessageID) })
	if err != nil {
		return nil, err
	}
	skipped, err := f.skipped(nil, func(s contract.SkippedMail) bool { return matches(s.From, s.Subject, s.MessageID) })
	if err != nil {
		return nil, err
	}
	dead, err := f.dead(func(_ map[string]string, c contract.Content) bool {
		return matches(c.From, c.Subject, c.MessageID)
	})
	if err != nil {
		return nil, err
	}
	found := slices.Concat(requests, skipped, dead)
	slices.SortStableFunc(found, func(a, b finding) int { return b.at.Compare(a.at) })
	found = distinct(found)
	return found[:min(len(found), mostReceipts)], nil
}

// distinct drops findings of a mail that was found before.
func distinct(found []finding) []finding {
	seen := map[string]bool{}
	return slices.DeleteFunc(found, func(one finding) bool {
		id := one.source + "/" + one.mail
		if one.mail == "" {
			place := one.skipped.Place
			place.Fingerprint = ""
			key, _ := json.Marshal(place) // plain fields
			id += string(key)
		}
		defer func() { seen[id] = true }()
		return seen[id]
	})
}

// window is how many sequences are read at once on the way back through a stream.
const window = 2000

var errEnough = errors.New("enough")

// requests finds the newest requests and replies that match, reading the stream backwards in windows.
func (f *finder) requests(match func(contract.ContactRequest) bool) ([]finding, error) {
	last, err := f.conn.LastSequence(f.p.ctx, contract.StreamContactRequests)
	if err != nil {
		return nil, err
	}
	filters := []string{
		contract.ContactRequestSubject(contract.EventReceived, "*", "*", "*"),
		contract.ContactRequestSubject(contract.EventReplied, "*", "*", "*"),
	}
	var found []finding
	for high := last; high > 0 && len(found) < mostReceipts; {
		low := uint64(1)
		if high > window {
			low = high - window + 1
		}
		var here []finding
		err := f.conn.Scan(f.p.ctx, contract.StreamContactRequests, bus.ScanOptions{Filters: filters, FromSeq: low},
			func(stored bus.Stored) error {
				if stored.Sequence > high {
					return errEnough
				}
				var c contract.ContactRequest
				if json.Unmarshal(stored.Body, &c) == nil && match(c) {
					here = append(here, finding{source: c.Source.ID, mail: c.Mail, at: stored.Time})
				}
				return nil
			})
		if err != nil && !errors.Is(err, errEnough) {
			return nil, err
		}
		slices.Reverse(here)
		found = append(found, here...)
		high = low - 1
	}
	return found[:min(len(found), mostReceipts)], nil
}

// skipped finds the mails that were left in their Inbox: by the headers of the events where byHeader is given, and by
// their bodies where byBody is.
func (f *finder) skipped(
	byHeader func(map[string]string) bool, byBody func(contract.SkippedMail) bool,
) ([]finding, error) {
	var found []finding
	keep := func(stored bus.Stored) {
		var s contract.SkippedMail
		if json.Unmarshal(stored.Body, &s) != nil || byBody != nil && !byBody(s) {
			return
		}
		found = append(found, finding{source: s.Source.ID, mail: s.Mail, skipped: &s, at: stored.Time})
	}
	var sequences []uint64
	options := bus.ScanOptions{Filters: []string{contract.SkippedSubject("*")}, HeadersOnly: byHeader != nil}
	err := f.conn.Scan(f.p.ctx, contract.StreamParsed, options, func(stored bus.Stored) error {
		switch {
		case byHeader == nil:
			keep(stored)
		case byHeader(stored.Header):
			sequences = append(sequences, stored.Sequence)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, sequence := range sequences {
		stored, err := f.conn.Get(f.p.ctx, contract.StreamParsed, sequence)
		if errors.Is(err, bus.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		keep(*stored)
	}
	return found, nil
}

// dead finds dead letters by what their mail says.
func (f *finder) dead(match func(map[string]string, contract.Content) bool) ([]finding, error) {
	var found []finding
	err := f.conn.Scan(f.p.ctx, contract.StreamDeadLetters, bus.ScanOptions{}, func(stored bus.Stored) error {
		var letter contract.DeadLetter
		if json.Unmarshal(stored.Body, &letter) == nil && match(stored.Header, letterContent(letter)) {
			found = append(found, finding{source: letter.Source, mail: letter.Mail, at: stored.Time})
		}
		return nil
	})
	return found, err
}

// letterContent is what the mail of a dead letter says, as far as it can be read: from its raw header, or from the
// message of a later stage.
func letterContent(letter contract.DeadLetter) contract.Content {
	var c contract.Content
	if strings.HasPrefix(letter.Message.Subject, "mail.v1.raw.") {
		header, _ := reply.SplitHeader(letter.Message.Body)
		c.Subject, c.From, c.MessageID = reply.ParseHeader(header).Summary()
		return c
	}
	_ = json.Unmarshal(letter.Message.Body, &c) // what cannot be read is not shown
	return c
}

// receipt collects what happened to a mail.
func (f *finder) receipt(one finding) (receipt, error) {
	r := receipt{Mail: one.mail, Source: contract.SourceRef{ID: one.source}}
	for _, s := range f.sources {
		if s.ID == one.source {
			r.Source = s.Ref()
		}
	}
	if one.mail == "" {
		r.left(one.skipped, one.at, 0)
		r.settle()
		return r, nil
	}
	since, err := f.raw(&r)
	for _, collect := range []func(*receipt, time.Time) error{f.parsed, f.events, f.orders, f.letters} {
		if err == nil {
			err = collect(&r, since)
		}
	}
	r.settle()
	return r, err
}

// raw is when the mail was stored.
func (f *finder) raw(r *receipt) (time.Time, error) {
	stored, err := f.conn.Last(f.p.ctx, contract.StreamMail, contract.RawSubject(r.Source.ID, r.Mail))
	if errors.Is(err, bus.ErrNotFound) { // erased, or cleared away after its time
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	text := stored.Header[contract.HeaderSize] + " bytes"
	if stored.Header[contract.HeaderPartial] != "" {
		text += ", headers only: the mail is too large"
	}
	r.step(*stored, "fetcher", "stored", "", text)
	if at, err := time.Parse(time.RFC3339, stored.Header[contract.HeaderReceivedAt]); err == nil {
		r.ReceivedAt = utc(at)
	}
	if len(stored.Body) > 0 {
		header, _ := reply.SplitHeader(stored.Body)
		subject, from, id := reply.ParseHeader(header).Summary()
		r.says(contract.Content{Subject: subject, From: from, MessageID: id})
	}
	return stored.Time, nil
}

// parsed is what the parser made of it, and whether it was to look again.
func (f *finder) parsed(r *receipt, since time.Time) error {
	return f.about(contract.StreamParsed, r, since, []string{
		contract.ParsedSubject(r.Source.ID), contract.SkippedSubject(r.Source.ID), contract.EvaluateSubject(r.Source.ID),
	}, func(stored bus.Stored) {
		switch stored.Subject {
		case contract.ParsedSubject(r.Source.ID):
			var parsed contract.ParsedMail
			if json.Unmarshal(stored.Body, &parsed) != nil {
				return
			}
			r.says(parsed.Content)
			text := strings.Join(parsed.Parse.Warnings, ", ")
			if parsed.Machine != "" {
				text = strings.TrimPrefix(text+", "+parsed.Machine, ", ")
			}
			r.step(stored, "parser", "parsed", parsed.Parse.Status, text)
		case contract.SkippedSubject(r.Source.ID):
			var skipped contract.SkippedMail
			if json.Unmarshal(stored.Body, &skipped) == nil {
				r.left(&skipped, stored.Time, stored.Sequence)
			}
		default:
			var again contract.Evaluate
			if json.Unmarshal(stored.Body, &again) == nil {
				r.step(stored, "fetcher", "evaluate", again.Reason, "looked at again")
			}
		}
	})
}

// events are those of the request that it made or joined.
func (f *finder) events(r *receipt, _ time.Time) error {
	filter := contract.ContactRequestFilter(r.Source.ID, r.Mail)
	return f.conn.Scan(f.p.ctx, contract.StreamContactRequests, bus.ScanOptions{Filters: []string{filter}},
		func(stored bus.Stored) error {
			name, workflow, _, _, err := contract.ContactRequestKeys(stored.Subject)
			if err != nil {
				return nil //nolint:nilerr // no event of a request
			}
			text := "workflow " + workflow
			if name == contract.EventReceived || name == contract.EventReplied {
				var c contract.ContactRequest
				if json.Unmarshal(stored.Body, &c) == nil {
					r.Request = c.Request
					r.says(c.Content)
					if name == contract.EventReplied {
						text += ", joins request " + c.Request
					}
				}
			}
			r.step(stored, "router", name, "", text)
			return nil
		})
}

// orders are what was to be done to it in its mailbox, and what came of that.
func (f *finder) orders(r *receipt, since time.Time) error {
	order := contract.DisposeSubject(r.Source.ID)
	return f.about(contract.StreamDispositions, r, since, []string{order, contract.DisposedSubject(r.Source.ID)},
		func(stored bus.Stored) {
			if stored.Subject == order {
				var d contract.Dispose
				if json.Unmarshal(stored.Body, &d) == nil {
					r.step(stored, "router", "ordered", "", string(d.Disposition)+" it in its mailbox")
				}
				return
			}
			var d contract.Disposed
			if json.Unmarshal(stored.Body, &d) == nil {
				r.step(stored, "archiver", d.Outcome, "", outcomeText(d))
			}
		})
}

// letters are the dead letters made of it.
func (f *finder) letters(r *receipt, _ time.Time) error {
	filter := contract.DeadLetterSubject("*", r.Source.ID, r.Mail)
	return f.conn.Scan(f.p.ctx, contract.StreamDeadLetters, bus.ScanOptions{Filters: []string{filter}},
		func(stored bus.Stored) error {
			var letter contract.DeadLetter
			if json.Unmarshal(stored.Body, &letter) == nil {
				r.says(letterContent(letter))
				text := fault.New(fault.Code(letter.Code), nil, nil).Text("en").Headline + ", " + attempts(letter.Attempts)
				r.step(stored, letter.Stage, "dead-letter", letter.Code, text)
			}
			return nil
		})
}

// about calls each for the messages of a stream that are about the mail of a receipt: found by header, then read.
func (f *finder) about(
	stream contract.Stream, r *receipt, since time.Time, filters []string, each func(bus.Stored),
) error {
	var sequences []uint64
	options := bus.ScanOptions{Filters: filters, Since: since, HeadersOnly: true}
	err := f.conn.Scan(f.p.ctx, stream, options, func(stored bus.Stored) error {
		if stored.Header[contract.HeaderMail] == r.Mail {
			sequences = append(sequences, stored.Sequence)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, sequence := range sequences {
		stored, err := f.conn.Get(f.p.ctx, stream, sequence)
		if errors.Is(err, bus.ErrNotFound) {
			continue // cleared away meanwhile
		}
		if err != nil {
			return err
		}
		each(*stored)
	}
	return nil
}

// step adds what a message says.
func (r *receipt) step(stored bus.Stored, stage, what, code, text string) {
	r.Steps = append(r.Steps, event{
		At: stored.Time.UTC(), Stage: stage, What: what, Code: code, Text: text, sequence: stored.Sequence,
	})
}

// left adds the decision to leave it in its Inbox.
func (r *receipt) left(s *contract.SkippedMail, at time.Time, sequence uint64) {
	r.says(contract.Content{From: s.From, Subject: s.Subject, MessageID: s.MessageID})
	if r.ReceivedAt == nil {
		r.ReceivedAt = utc(s.ReceivedAt)
	}
	text := reasonText(s.Reason)
	if reasons := strings.Join(s.Reply.Reasons, ", "); reasons != "" {
		text += " (" + reasons + ")"
	}
	r.Steps = append(r.Steps, event{
		At: at.UTC(), Stage: s.Stage, What: "skipped", Code: s.Reason, Text: text, sequence: sequence,
	})
}

// says fills in what is known of the mail itself.
func (r *receipt) says(c contract.Content) {
	if r.From == nil {
		r.From = c.From
	}
	if r.Subject == "" {
		r.Subject = c.Subject
	}
	if r.MessageID == "" {
		r.MessageID = c.MessageID
	}
	if r.ReceivedAt == nil {
		r.ReceivedAt = utc(c.ReceivedAt)
	}
}
