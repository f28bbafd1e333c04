package mailbox

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	pop3 "github.com/knadh/go-pop3"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

// popSession is a [Session] over POP3. go-pop3 frames the short commands; mails are read by [popBody] from the same
// connection, byte for byte.
type popSession struct {
	settings *Settings
	guard    *guard
	wire     *popWire
	client   *pop3.Conn
	caps     map[string][]string
	status   Status
	entries  []Entry        // of the last listing
	hashes   map[int]string // SHA-256 by message number, of mails without UIDL
	marked   bool           // something is marked for deletion: QUIT would delete it
	over     bool           // QUIT was sent
}

var _ Session = (*popSession)(nil)

func newPOPSession(ctx context.Context, s *Settings, g *guard, conn net.Conn,
	caps map[string][]string) (*popSession, error) {
	session := &popSession{settings: s, guard: g, caps: caps, hashes: map[int]string{},
		wire: &popWire{Conn: conn, guard: g, trace: s.Trace}}
	var err error
	if session.client, err = newPOPClient(session.wire); err != nil {
		return nil, session.failed(ctx, "sign-in", err)
	}
	_, err = session.List(ctx)
	return session, err
}

// failed turns an error of go-pop3 into one with a code: its errors have no type, so while the connection lives an
// error is the text behind -ERR.
func (s *popSession) failed(ctx context.Context, step string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if f, ok := errors.AsType[*fault.Error](err); ok {
		if f.Params == nil { // found below, where the step is not known
			return fault.New(f.Code, f, params(s.settings, "step", step))
		}
		return err
	}
	if s.guard.failure() != nil {
		return ioFault(ctx, s.settings, s.guard, step, err)
	}
	if strings.HasPrefix(err.Error(), "unknown response") {
		return s.broken(step, err)
	}
	if r, ok := errors.AsType[refusal](err); ok {
		return r.fault(s.settings, step, false)
	}
	return refused(err.Error()).fault(s.settings, step, false)
}

func (s *popSession) broken(step string, cause error) error {
	return s.guard.fail(fault.New(fault.ProtocolBroken, cause, params(s.settings, "step", step)))
}

func (s *popSession) command(ctx context.Context, step string, budget int64, run func() error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if s.over {
		return fault.New(fault.ProtocolClosed, nil, params(s.settings, "step", step))
	}
	stop := s.guard.watch(ctx)
	defer stop()
	s.guard.arm(budget)
	defer s.guard.disarm()
	return s.failed(ctx, step, run())
}

func (s *popSession) dead() bool { return s.over || s.guard.failure() != nil }

func (s *popSession) Status() Status {
	status := s.status
	status.CertUntil = s.guard.certUntil
	return status
}

// List cross-checks STAT, LIST and UIDL: a listing that is not whole is an error, never a shorter listing. A UIDL that
// two mails share identifies neither: both are listed without.
func (s *popSession) List(ctx context.Context) ([]Entry, error) {
	var stat *bytes.Buffer
	err := s.command(ctx, "STAT", budgetControl, func() (err error) {
		stat, err = s.client.Cmd("STAT", false)
		return err
	})
	if err != nil {
		return nil, err
	}
	words := strings.Fields(stat.String())
	if len(words) == 0 {
		return nil, s.broken("STAT", errors.New("no number of mails"))
	}
	count, err := strconv.Atoi(words[0])
	if err != nil || count < 0 || count > mostMails {
		return nil, s.broken("STAT", errors.New(fault.Quote(stat.String())))
	}
	entries := make([]Entry, count)
	if count > 0 {
		if err := s.listSizes(ctx, entries); err != nil {
			return nil, err
		}
	}
	hasUIDL, err := s.listUIDLs(ctx, entries)
	if err != nil {
		return nil, err
	}
	s.entries = entries
	s.status = Status{Messages: count, HasUIDL: hasUIDL}
	return append([]Entry(nil), entries...), nil
}

// listing runs a command that lists all mails and calls each with the number and the rest of every line.
func (s *popSession) listing(ctx context.Context, command string, count int,
	each func(n int, rest string) error) error {
	var answer *bytes.Buffer
	budget := min(budgetList, budgetQuiet+int64(count)*128)
	err := s.command(ctx, command, budget, func() (err error) {
		answer, err = s.client.Cmd(command, true)
		return err
	})
	if err != nil {
		return err
	}
	seen := make([]bool, count)
	total := 0
	for line := range strings.Lines(answer.String()) {
		line = strings.TrimRight(line, "\r\n")
		first, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(first)
		if err != nil || n < 1 || n > count || seen[n-1] {
			return s.broken(command, fmt.Errorf("line %q of %d mails", fault.Quote(line), count))
		}
		seen[n-1] = true
		total++
		if err := each(n, strings.TrimSpace(rest)); err != nil {
			return s.broken(command, err)
		}
	}
	if total != count {
		return s.broken(command, fmt.Errorf("%d lines for %d mails", total, count))
	}
	return nil
}

func (s *popSession) listSizes(ctx context.Context, entries []Entry) error {
	return s.listing(ctx, "LIST", len(entries), func(n int, rest string) error {
		first, _, _ := strings.Cut(rest, " ")
		size, err := strconv.ParseInt(first, 10, 64)
		if err != nil || size < 0 {
			return fmt.Errorf("size %q of mail %d", fault.Quote(rest), n)
		}
		entries[n-1] = Entry{Number: n, Size: size}
		return nil
	})
}

func (s *popSession) listUIDLs(ctx context.Context, entries []Entry) (bool, error) {
	_, advertised := s.caps["UIDL"]
	if s.caps != nil && !advertised && len(entries) == 0 {
		return false, nil
	}
	owner := map[string]int{}
	err := s.listing(ctx, "UIDL", len(entries), func(n int, uidl string) error {
		if uidl == "" || len(uidl) > 512 {
			return fmt.Errorf("no UIDL for mail %d", n)
		}
		if other, taken := owner[uidl]; taken {
			entries[other-1].UIDL = ""
			return nil
		}
		owner[uidl] = n
		entries[n-1].UIDL = uidl
		return nil
	})
	if _, isRefusal := refusalOf(err); isRefusal && !advertised && !s.dead() {
		return false, nil // an optional command (RFC 1939 section 7)
	}
	return err == nil, err
}

func refusalOf(err error) (refusal, bool) { return errors.AsType[refusal](err) }

// Describe returns what the listing told: POP3 knows no dates.
func (s *popSession) Describe(_ context.Context, mails []Entry) ([]Info, error) {
	infos := make([]Info, 0, len(mails))
	for _, m := range mails {
		if own, ok := s.find(m); ok {
			infos = append(infos, Info{Entry: own})
		}
	}
	return infos, nil
}

// find returns the entry of this session for a mail that may have been listed in another.
func (s *popSession) find(m Entry) (Entry, bool) {
	if m.UIDL == "" {
		if m.Number < 1 || m.Number > len(s.entries) || s.entries[m.Number-1].Size != m.Size {
			return Entry{}, false
		}
		return s.entries[m.Number-1], true
	}
	if m.Number >= 1 && m.Number <= len(s.entries) && s.entries[m.Number-1].UIDL == m.UIDL {
		return s.entries[m.Number-1], true
	}
	for _, own := range s.entries {
		if own.UIDL == m.UIDL {
			return own, true
		}
	}
	return Entry{}, false
}

// Headers reads header blocks with TOP, or from the beginning of the mail where the server has no TOP.
func (s *popSession) Headers(ctx context.Context, mails []Entry, call func(Entry, []byte) error) error {
	for _, m := range mails {
		own, ok := s.find(m)
		if !ok {
			continue
		}
		header, err := s.header(ctx, own)
		if err != nil {
			return err
		}
		if header == nil {
			continue
		}
		if err := call(own, header); err != nil {
			return err
		}
	}
	return nil
}

// header is nil when the mail has vanished.
func (s *popSession) header(ctx context.Context, m Entry) ([]byte, error) {
	const step = "reading headers"
	var header []byte
	read := func(body io.Reader) error {
		block, err := io.ReadAll(io.LimitReader(body, longestHeader))
		if err != nil {
			return err
		}
		header = headerBlock(block)
		_, err = io.Copy(io.Discard, body)
		return err
	}
	_, hasTOP := s.caps["TOP"]
	if s.caps == nil || hasTOP {
		err := s.lines(ctx, step, fmt.Sprintf("TOP %d 0", m.Number), 2*longestHeader+allowance(m.Size), read)
		if err == nil && header != nil {
			return header, nil
		}
		if _, isRefusal := refusalOf(err); !isRefusal || s.dead() {
			return nil, err
		}
	}
	err := s.lines(ctx, step, fmt.Sprintf("RETR %d", m.Number), allowance(m.Size), read)
	return header, err
}

// lines runs a command with a multi-line answer and gives its content to read, which must read it to its end.
func (s *popSession) lines(ctx context.Context, step, command string, budget int64, read func(io.Reader) error) error {
	return s.command(ctx, step, budget, func() error {
		if _, err := io.WriteString(s.wire, command+"\r\n"); err != nil {
			return err
		}
		// Nothing is pipelined, so that go-pop3's own buffer is empty.
		buffer := bufio.NewReaderSize(s.wire, 64<<10)
		line, err := buffer.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return s.broken(step, err)
		}
		if err != nil {
			return err
		}
		text := strings.TrimRight(string(line), "\r\n")
		if head, words, _ := strings.Cut(text, " "); strings.EqualFold(head, "-ERR") {
			return refused(words)
		} else if !strings.EqualFold(head, "+OK") {
			return s.broken(step, errors.New(fault.Quote(text)))
		}
		body := &popBody{r: buffer, lost: func(err error) error { return s.failed(ctx, step, err) }}
		err = read(body)
		if s.guard.failure() != nil {
			return err
		}
		if _, drainErr := io.Copy(io.Discard, body); err == nil || s.guard.failure() != nil {
			err = drainErr
		}
		if buffer.Buffered() > 0 && s.guard.failure() == nil {
			return s.broken(step, errors.New("more after the end of an answer"))
		}
		return err
	})
}

// popBody reads the content of a multi-line answer byte for byte. Only CRLF "." CRLF ends it: a line that holds one
// dot between bare line feeds belongs to the mail.
type popBody struct {
	r      *bufio.Reader
	lost   func(error) error
	inLine bool // the next byte is not the first of a line
	cr     bool // the last byte was a CR
	rest   []byte
	err    error
}

func (b *popBody) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		if b.err != nil {
			return 0, b.err
		}
		b.next()
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

func (b *popBody) next() {
	line, err := b.r.ReadSlice('\n')
	if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
		b.err = b.lost(err)
		return
	}
	if !b.inLine && line[0] == '.' {
		if bytes.Equal(line, []byte(".\r\n")) {
			b.err = io.EOF
			return
		}
		line = line[1:]
	}
	ended := bytes.HasSuffix(line, []byte("\r\n")) || b.cr && len(line) == 1 && line[0] == '\n'
	b.inLine = !ended
	if len(line) > 0 {
		b.cr = line[len(line)-1] == '\r'
	}
	b.rest = line
}

// Fetch reads whole mails with RETR. Its end mark proves that a mail is whole (RFC 1939 section 3). What LIST said is
// for the caller to compare: some servers only estimate.
func (s *popSession) Fetch(ctx context.Context, mails []Entry, call func(Entry, int64, io.Reader) error) error {
	const step = "reading mails"
	for _, m := range mails {
		own, ok := s.find(m)
		if !ok {
			continue
		}
		if s.settings.MaxBody > 0 && own.Size > s.settings.MaxBody {
			if err := call(own, own.Size, failing{tooLarge(s.settings)}); err != nil {
				return err
			}
			continue
		}
		var failure error
		err := s.lines(ctx, step, fmt.Sprintf("RETR %d", own.Number), allowance(own.Size), func(body io.Reader) error {
			failure = call(own, own.Size, &listedBody{r: body, settings: s.settings})
			return failure
		})
		if failure != nil && !s.dead() {
			return failure
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// listedBody refuses what is empty or too large.
type listedBody struct {
	r        io.Reader
	settings *Settings
	n        int64
}

func (b *listedBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += int64(n)
	most := b.settings.MaxBody
	switch {
	case most > 0 && b.n > most:
		return 0, tooLarge(b.settings)
	case err == io.EOF && b.n == 0: //nolint:errorlint // a reader ends in io.EOF itself
		return n, fault.New(fault.ProtocolEmpty, nil, params(b.settings))
	}
	return n, err
}

// Wait waits for d: a POP3 session never sees new mail.
func (s *popSession) Wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		_ = s.guard.fail(context.Cause(ctx))
		return context.Cause(ctx)
	}
}

// Sent always fails: POP3 has one mailbox.
func (s *popSession) Sent(context.Context, SentCursor, func(SentMail) error) (SentCursor, error) {
	return SentCursor{}, fault.New(fault.MailboxNoSent, nil, params(s.settings))
}

// Dispose deletes. What is marked is deleted only when the server has answered QUIT: without that answer the targets
// have no result. The session is over afterwards.
func (s *popSession) Dispose(ctx context.Context, what contract.Disposition, archive string,
	targets []Target) ([]Result, error) {
	switch what {
	case contract.Delete:
	case contract.Leave:
		results := make([]Result, len(targets))
		for i, t := range targets {
			results[i] = Result{Target: t, Outcome: contract.OutcomeLeft}
		}
		return results, nil
	default:
		return nil, fault.New(fault.ArchiveRefused, errors.New("POP3 has no mailboxes"),
			params(s.settings, "mailbox", archive, "words", ""))
	}
	if _, err := s.List(ctx); err != nil {
		return nil, err
	}
	results := make([]Result, 0, len(targets))
	marked := map[int]bool{}
	for _, t := range targets {
		entry, outcome, err := s.identify(ctx, t)
		if err == nil && outcome == "" && !marked[entry.Number] {
			s.marked = true
			err = s.command(ctx, "DELE", budgetControl, func() error { return s.client.Dele(entry.Number) })
			marked[entry.Number] = err == nil
		}
		switch {
		case err != nil && s.dead() || ctx.Err() != nil:
			return known(results), err
		case err != nil:
			results = append(results, Result{Target: t, Err: err})
		case outcome != "":
			results = append(results, Result{Target: t, Outcome: outcome})
		default:
			results = append(results, Result{Target: t, Outcome: contract.OutcomeDeleted})
		}
	}
	if err := s.quit(ctx); err != nil {
		return known(results), err
	}
	return results, nil
}

// known leaves out what is deleted only if QUIT was answered.
func known(results []Result) []Result {
	return slices.DeleteFunc(results, func(r Result) bool { return r.Outcome == contract.OutcomeDeleted })
}

// identify finds a target in this session's listing. outcome is set when there is nothing to delete.
func (s *popSession) identify(ctx context.Context, t Target) (entry Entry, outcome string, err error) {
	if t.Place.Protocol == string(IMAP) {
		return Entry{}, contract.OutcomeSuperseded, nil
	}
	if t.Place.UIDL == "" {
		return s.identifyByDigest(ctx, t)
	}
	entry, ok := s.find(Entry{UIDL: t.Place.UIDL})
	switch {
	case !ok && s.sharedUIDLs():
		return s.identifyByDigest(ctx, t) // two mails have this UIDL by now, or it is gone
	case !ok:
		return Entry{}, contract.OutcomeGone, nil
	case entry.Size != t.Place.Size:
		return Entry{}, contract.OutcomeMismatch, nil
	case t.Place.Fingerprint == "":
		return entry, "", nil
	}
	header, err := s.header(ctx, entry)
	switch {
	case err != nil:
		return Entry{}, "", err
	case Fingerprint(header) != t.Place.Fingerprint:
		return Entry{}, contract.OutcomeMismatch, nil // UIDLs are used again by some servers
	}
	return entry, "", nil
}

func (s *popSession) sharedUIDLs() bool {
	for _, e := range s.entries {
		if e.UIDL == "" {
			return true
		}
	}
	return false
}

// identifyByDigest reads the mails of the target's size and compares their digests.
func (s *popSession) identifyByDigest(ctx context.Context, t Target) (Entry, string, error) {
	for _, entry := range s.entries {
		if entry.Size != t.Place.Size {
			continue
		}
		digest, known := s.hashes[entry.Number]
		if !known {
			hash := sha256.New()
			err := s.lines(ctx, "identifying mails", fmt.Sprintf("RETR %d", entry.Number), allowance(entry.Size),
				func(body io.Reader) error {
					_, err := io.Copy(hash, body)
					return err
				})
			if err != nil && (s.dead() || ctx.Err() != nil) {
				return Entry{}, "", err
			}
			if err == nil {
				digest = hex.EncodeToString(hash.Sum(nil))
				s.hashes[entry.Number] = digest
			}
		}
		if digest != "" && strings.EqualFold(digest, t.SHA256) {
			return entry, "", nil
		}
	}
	return Entry{}, contract.OutcomeGone, nil
}

func (s *popSession) quit(ctx context.Context) error {
	err := s.command(ctx, "QUIT", budgetControl, s.client.Quit)
	s.over = true
	return err
}

// Close ends the session without deleting anything: what is marked and not carried out by QUIT stays.
func (s *popSession) Close() error {
	if !s.dead() && !s.marked {
		ctx, cancel := context.WithTimeout(context.Background(), min(goodbye, s.settings.Timeout))
		_ = s.quit(ctx) // unlocks the maildrop at once; the connection ends either way
		cancel()
	}
	return s.guard.Close()
}
