package mailbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"

	"posthorn/pkg/fault"
)

const (
	describeBatch = 250
	headerBatch   = 50
	// longestHeader is how much of a header block is read; what is beyond it says nothing about a mail.
	longestHeader = 1 << 20
	// A batch of bodies is asked for at once, so that the way to the server and back is paid once for all of them.
	fetchBatch      = 50
	fetchBatchBytes = 8 << 20
	// idleRound is how long IDLE goes on before the server must prove that it is still there.
	idleRound = 5 * time.Minute
	// mostMails is the largest Inbox that is listed.
	mostMails = 1 << 20
	goodbye   = 2 * time.Second
)

// imapSession is a [Session] over go-imap. Commands follow one another; each is armed in the guard first.
type imapSession struct {
	settings *Settings
	guard    *guard
	client   *imapclient.Client
	lines    *imapLines
	caps     map[string]bool
	mode     Mode

	status  Status
	changed chan struct{}     // the Inbox changed since the last listing
	archive map[string]string // configured name to mailbox, once found or made
}

var _ Session = (*imapSession)(nil)

func newIMAPSession(s *Settings, g *guard, conn net.Conn, caps map[string]bool, mode Mode) *imapSession {
	session := &imapSession{settings: s, guard: g, caps: caps, mode: mode,
		changed: make(chan struct{}, 1), archive: map[string]string{}}
	session.client, session.lines = newIMAPClient(g, conn, s.Trace, caps, func() {
		select {
		case session.changed <- struct{}{}:
		default: // it is known already
		}
	})
	return session
}

// failed turns what go-imap returned into an error with a code.
func (s *imapSession) failed(ctx context.Context, step string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if answer, ok := errors.AsType[*imap.Error](err); ok {
		return answered(answer).fault(s.settings, step, false)
	}
	if words := s.lines.farewell(); words != "" {
		if f := refused(words).fault(s.settings, step, false); f.Code != fault.ProtocolRefused {
			return f
		}
	}
	return ioFault(ctx, s.settings, s.guard, step, err)
}

func answered(err *imap.Error) refusal {
	r := refused(err.Text)
	if err.Code != "" {
		r = refusal{string(err.Code), err.Text}
	}
	return r
}

// command runs one command with a budget for its answer.
func (s *imapSession) command(ctx context.Context, step string, budget int64, run func() error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	stop := s.guard.watch(ctx)
	defer stop()
	s.guard.arm(budget)
	defer s.guard.disarm()
	return s.failed(ctx, step, run())
}

// dead tells whether no further command can be run.
func (s *imapSession) dead() bool {
	select {
	case <-s.client.Closed():
		return true
	default:
		return s.guard.failure() != nil
	}
}

// open opens the Inbox: with EXAMINE, unless it is to be changed.
func (s *imapSession) open(ctx context.Context) error {
	data, err := s.examine(ctx, "INBOX", s.mode == Read)
	if err != nil {
		return err
	}
	s.status = Status{
		UIDValidity: data.UIDValidity,
		UIDNext:     uint32(data.UIDNext),
		Messages:    int(data.NumMessages),
		ReadOnly:    s.mode == Write && s.lines.isDenied(),
		CanIdle:     s.caps["IDLE"],
	}
	return nil
}

func (s *imapSession) examine(ctx context.Context, mailbox string, readOnly bool) (*imap.SelectData, error) {
	s.lines.deny(false)
	var data *imap.SelectData
	err := s.command(ctx, "opening "+mailbox, budgetControl, func() (err error) {
		data, err = s.client.Select(mailbox, &imap.SelectOptions{ReadOnly: readOnly}).Wait()
		return err
	})
	return data, err
}

func (s *imapSession) Status() Status {
	status := s.status
	status.CertUntil = s.guard.certUntil
	return status
}

// List asks for the UIDs of all mails, and of those that somebody flagged \Deleted.
func (s *imapSession) List(ctx context.Context) ([]Entry, error) {
	// NOOP first: a server may answer SEARCH from the mailbox as it was when the last command ended.
	if err := s.command(ctx, "NOOP", budgetControl, func() error { return s.client.Noop().Wait() }); err != nil {
		return nil, err
	}
	select {
	case <-s.changed: // what is known by now will be in the listing
	default:
	}
	all, err := s.search(ctx, &imap.SearchCriteria{})
	if err != nil {
		return nil, err
	}
	deleted, err := s.search(ctx, &imap.SearchCriteria{Flag: []imap.Flag{imap.FlagDeleted}})
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, len(all))
	for i, uid := range all {
		_, flagged := slices.BinarySearch(deleted, uid)
		entries[i] = Entry{UID: uint32(uid), Deleted: flagged}
		s.status.UIDNext = max(s.status.UIDNext, uint32(uid)+1)
	}
	s.status.Messages = len(all)
	return entries, nil
}

// search returns the UIDs found, ascending. Their number is bounded: a few bytes ("1:4294967295") can name them all.
func (s *imapSession) search(ctx context.Context, criteria *imap.SearchCriteria) ([]imap.UID, error) {
	var options *imap.SearchOptions
	if s.caps["ESEARCH"] {
		options = &imap.SearchOptions{ReturnAll: true}
	}
	known := mostMails
	if mailbox := s.client.Mailbox(); mailbox != nil {
		known = int(mailbox.NumMessages)
	}
	var data *imap.SearchData
	budget := min(budgetList, budgetControl+int64(known)*12)
	err := s.command(ctx, "listing", budget, func() (err error) {
		data, err = s.client.UIDSearch(criteria, options).Wait()
		return err
	})
	if err != nil {
		return nil, err
	}
	set, ok := data.All.(imap.UIDSet)
	if !ok {
		if data.All == nil {
			return nil, nil
		}
		return nil, s.broken("listing", errors.New("sequence numbers for UIDs"))
	}
	if mailbox := s.client.Mailbox(); mailbox != nil {
		known = int(mailbox.NumMessages)
	}
	most := min(mostMails, known+4096)
	var uids []imap.UID
	for _, r := range set {
		if r.Start == 0 || r.Stop < r.Start || int64(r.Stop)-int64(r.Start) >= int64(most-len(uids)) {
			return nil, s.broken("listing", fmt.Errorf("more UIDs than the %d mails of the mailbox", known))
		}
		for uid := r.Start; ; uid++ {
			uids = append(uids, uid)
			if uid == r.Stop {
				break
			}
		}
	}
	slices.Sort(uids)
	return slices.Compact(uids), nil
}

// broken ends the session over an answer that cannot be right.
func (s *imapSession) broken(step string, cause error) error {
	return s.guard.fail(fault.New(fault.ProtocolBroken, cause, params(s.settings, "step", step)))
}

// Describe asks for size and date of the mails.
func (s *imapSession) Describe(ctx context.Context, mails []Entry) ([]Info, error) {
	infos := make([]Info, 0, len(mails))
	for batch := range slices.Chunk(mails, describeBatch) {
		byUID := map[imap.UID]Entry{}
		var set imap.UIDSet
		for _, m := range batch {
			byUID[imap.UID(m.UID)] = m
			set.AddNum(imap.UID(m.UID))
		}
		found := map[imap.UID]Info{}
		err := s.command(ctx, "reading sizes", budgetControl, func() error {
			return s.each(s.client.Fetch(set, &imap.FetchOptions{UID: true, RFC822Size: true, InternalDate: true}),
				func(msg *fetched) error {
					if msg.size < 0 {
						return nil
					}
					info := Info{Entry: byUID[msg.uid]}
					info.Size = msg.size
					if msg.date.Unix() > 0 { // an unreadable date has become 1970
						info.InternalDate = msg.date
					}
					found[msg.uid] = info
					return nil
				})
		})
		if err != nil {
			return nil, err
		}
		for _, m := range batch {
			if info, ok := found[imap.UID(m.UID)]; ok {
				infos = append(infos, info)
			}
		}
	}
	return infos, nil
}

// fetched is one answer to FETCH up to its body, which is nil when there is none.
type fetched struct {
	uid   imap.UID
	size  int64
	date  time.Time
	flags []imap.Flag
	body  imap.LiteralReader
	asked bool // the body was among the answers, if only as NIL
}

// each reads the answers to FETCH to their end. After a failing call the rest is read and thrown away: go-imap reads
// nothing else before. A literal is given to call as soon as it comes, with what stood before it; other items may
// stand behind it, so that uid alone is sure to be set then.
func (s *imapSession) each(cmd *imapclient.FetchCommand, call func(*fetched) error) error {
	var failure error
	for msg := cmd.Next(); msg != nil; msg = cmd.Next() {
		f := &fetched{size: -1}
		called := false
		for item := msg.Next(); item != nil; item = msg.Next() {
			switch item := item.(type) {
			case imapclient.FetchItemDataUID:
				f.uid = item.UID
			case imapclient.FetchItemDataRFC822Size:
				f.size = item.Size
			case imapclient.FetchItemDataInternalDate:
				f.date = item.Time
			case imapclient.FetchItemDataFlags:
				f.flags = item.Flags
			case imapclient.FetchItemDataBodySection:
				f.asked = true
				if item.Literal != nil {
					f.body = liveLiteral{item.Literal, s.lines}
				}
				if failure == nil && !called && f.uid != 0 {
					failure = call(f)
				}
				called = true
				f.body = nil
			}
		}
		if failure == nil && !called && f.uid != 0 {
			failure = call(f)
		}
	}
	if err := cmd.Close(); failure == nil {
		return err
	}
	return failure
}

// eachWhole is each that also calls done with every answer once all of its items have been read.
func (s *imapSession) eachWhole(cmd *imapclient.FetchCommand, call func(*fetched) error, done func(*fetched)) error {
	var all []*fetched
	err := s.each(cmd, func(f *fetched) error {
		all = append(all, f)
		return call(f)
	})
	if err != nil {
		return err
	}
	for _, f := range all {
		done(f)
	}
	return nil
}

// liveLiteral is a literal that ends in an error when the connection ended within it.
type liveLiteral struct {
	imap.LiteralReader

	lines *imapLines
}

func (l liveLiteral) Read(p []byte) (int, error) {
	n, err := l.LiteralReader.Read(p)
	if l.lines.isLost() {
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// Headers reads header blocks with BODY.PEEK[HEADER].
func (s *imapSession) Headers(ctx context.Context, mails []Entry, call func(Entry, []byte) error) error {
	section := &imap.FetchItemBodySection{Specifier: imap.PartSpecifierHeader, Peek: true}
	for batch := range slices.Chunk(mails, headerBatch) {
		byUID := map[imap.UID]Entry{}
		var set imap.UIDSet
		for _, m := range batch {
			byUID[imap.UID(m.UID)] = m
			set.AddNum(imap.UID(m.UID))
		}
		var own error
		budget := int64(4 * longestHeader)
		for _, m := range batch {
			budget += allowance(m.Size) // a header block is as long as its mail at most
		}
		err := s.command(ctx, "reading headers", budget, func() error {
			options := &imap.FetchOptions{UID: true, BodySection: []*imap.FetchItemBodySection{section}}
			return s.each(s.client.Fetch(set, options), func(msg *fetched) error {
				header, err := readHeader(msg.body)
				if err != nil || !msg.asked {
					return err
				}
				own = call(byUID[msg.uid], header)
				return own
			})
		})
		if own != nil && !s.dead() {
			return own
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readHeader reads at most longestHeader bytes and makes sure that nothing was cut off.
func readHeader(literal imap.LiteralReader) ([]byte, error) {
	if literal == nil {
		return nil, nil
	}
	want := min(literal.Size(), longestHeader)
	header, err := io.ReadAll(io.LimitReader(literal, want))
	if err != nil {
		return nil, err
	}
	if int64(len(header)) != want {
		return nil, io.ErrUnexpectedEOF
	}
	if _, err := io.Copy(io.Discard, literal); err != nil {
		return nil, err
	}
	return headerBlock(header), nil
}

// headerBlock cuts behind the empty line that ends a header block.
func headerBlock(b []byte) []byte {
	for at := 0; at < len(b); {
		end := bytes.IndexByte(b[at:], '\n')
		if end < 0 {
			break
		}
		if line := b[at : at+end]; len(bytes.TrimSuffix(line, []byte("\r"))) == 0 {
			return b[:at+end+1]
		}
		at += end + 1
	}
	return b
}

// Fetch reads whole mails with BODY.PEEK[], several for each command.
func (s *imapSession) Fetch(ctx context.Context, mails []Entry, call func(Entry, int64, io.Reader) error) error {
	for batch := range slices.Chunk(mails, describeBatch) {
		described, err := s.sized(ctx, batch)
		if err != nil {
			return err
		}
		for len(described) > 0 {
			first := described[0]
			if s.settings.MaxBody > 0 && first.Size > s.settings.MaxBody {
				if err := call(first, first.Size, failing{tooLarge(s.settings)}); err != nil {
					return err
				}
				described = described[1:]
				continue
			}
			n, bytes := 0, int64(0)
			for n < len(described) && n < fetchBatch && (n == 0 || bytes+described[n].Size <= fetchBatchBytes) &&
				(s.settings.MaxBody <= 0 || described[n].Size <= s.settings.MaxBody) {
				bytes += described[n].Size
				n++
			}
			if err := s.fetchBodies(ctx, described[:n], call); err != nil {
				return err
			}
			described = described[n:]
		}
	}
	return nil
}

// sized makes sure that the sizes are known, which the budgets are made of.
func (s *imapSession) sized(ctx context.Context, mails []Entry) ([]Entry, error) {
	if !slices.ContainsFunc(mails, func(m Entry) bool { return m.Size <= 0 }) {
		return mails, nil
	}
	infos, err := s.Describe(ctx, mails)
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, len(infos))
	for i, info := range infos {
		entries[i] = info.Entry
	}
	return entries, nil
}

// allowance is how much a body of an announced size may have: servers miscount line ends.
func allowance(size int64) int64 { return size + size/10 + 64<<10 }

func (s *imapSession) fetchBodies(ctx context.Context, mails []Entry, call func(Entry, int64, io.Reader) error) error {
	const step = "reading mails"
	byUID := map[imap.UID]Entry{}
	var set imap.UIDSet
	var budget int64
	for _, m := range mails {
		byUID[imap.UID(m.UID)] = m
		set.AddNum(imap.UID(m.UID))
		budget += allowance(m.Size) + 4<<10
	}
	var own error
	err := s.command(ctx, step, budget, func() error {
		section := &imap.FetchItemBodySection{Peek: true}
		options := &imap.FetchOptions{UID: true, BodySection: []*imap.FetchItemBodySection{section}}
		return s.each(s.client.Fetch(set, options), func(msg *fetched) error {
			mail := byUID[msg.uid]
			if !msg.asked {
				return nil // flags changed meanwhile: no answer of ours
			}
			if msg.body == nil || msg.body.Size() == 0 {
				own = call(mail, 0, failing{fault.New(fault.ProtocolEmpty, nil, params(s.settings))})
				return own
			}
			size := msg.body.Size()
			if size > allowance(mail.Size) {
				return s.guard.fail(errTooMuch)
			}
			if s.settings.MaxBody > 0 && size > s.settings.MaxBody {
				own = call(mail, size, failing{tooLarge(s.settings)})
				return own
			}
			body := &wholeBody{r: msg.body, left: size, lost: func(err error) error {
				return s.failed(ctx, step, errors.Join(err, io.ErrUnexpectedEOF))
			}}
			own = call(mail, size, body)
			return own
		})
	})
	if own != nil && (err == nil || !s.dead()) {
		return own
	}
	return err
}

// wholeBody ends in io.EOF only when every announced byte came. go-imap ends a literal that was cut off in io.EOF too.
type wholeBody struct {
	r    io.Reader
	left int64
	lost func(error) error
	err  error
}

func (b *wholeBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	switch {
	case b.left == 0:
		return n, io.EOF
	case err != nil:
		b.err = b.lost(err)
		return n, b.err
	}
	return n, nil
}

// failing is a body that cannot be read.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func tooLarge(s *Settings) error {
	return fault.New(fault.MailTooLarge, nil, params(s, "limit", sizeText(s.MaxBody)))
}

// sizeText writes a size as settings do: 25MB.
func sizeText(n int64) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%dMB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%dKB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}

// Wait waits in IDLE. A change noticed since the last List ends it at once.
func (s *imapSession) Wait(ctx context.Context, d time.Duration) error {
	deadline := time.Now().Add(d)
	for {
		select {
		case <-s.changed:
			return nil
		default:
		}
		left := time.Until(deadline)
		if left <= 0 {
			return nil
		}
		var done bool
		var err error
		if s.caps["IDLE"] {
			done, err = s.idle(ctx, min(left, idleRound))
		} else {
			done, err = s.pause(ctx, left)
		}
		if done || err != nil {
			return err
		}
		if s.caps["IDLE"] && time.Until(deadline) > 0 {
			// IDLE can look alive on a dead connection; NOOP cannot.
			if err := s.command(ctx, "NOOP", budgetControl, func() error { return s.client.Noop().Wait() }); err != nil {
				return err
			}
		}
	}
}

func (s *imapSession) pause(ctx context.Context, d time.Duration) (changed bool, err error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false, nil
	case <-s.changed:
		return true, nil
	case <-s.client.Closed():
		return false, s.failed(ctx, "waiting for mail", io.ErrUnexpectedEOF)
	case <-ctx.Done():
		_ = s.guard.fail(context.Cause(ctx))
		return false, context.Cause(ctx)
	}
}

func (s *imapSession) idle(ctx context.Context, d time.Duration) (changed bool, err error) {
	const step = "waiting for mail"
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	stop := s.guard.watch(ctx)
	defer stop()
	s.guard.arm(budgetControl)
	cmd, err := s.client.Idle()
	if err != nil {
		s.guard.disarm()
		return false, s.failed(ctx, step, err)
	}
	s.guard.disarm() // silence is what IDLE is for
	changed, err = s.pause(ctx, d)
	s.guard.arm(budgetControl)
	defer s.guard.disarm()
	closeErr := cmd.Close()
	if waitErr := cmd.Wait(); closeErr == nil {
		closeErr = waitErr
	}
	if err == nil {
		err = s.failed(ctx, step, closeErr)
	}
	return changed, err
}

// Close says goodbye, if that takes no longer than a moment.
func (s *imapSession) Close() error {
	if !s.dead() {
		ctx, cancel := context.WithTimeout(context.Background(), min(goodbye, s.settings.Timeout))
		_ = s.command(ctx, "LOGOUT", budgetControl, func() error { return s.client.Logout().Wait() })
		cancel()
	}
	_ = s.guard.Close()  // ends whatever still reads
	_ = s.client.Close() // waits for go-imap's goroutine; the connection is closed already
	return nil
}
