package mailboxtest

import (
	"bufio"
	"bytes"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/emersion/go-message/textproto"
)

// imapConn is one client's session.
type imapConn struct {
	s        *IMAP
	user     string
	box      *box
	viewMu   sync.Mutex // guards view where IDLE, which has a goroutine of its own, may still use it
	view     *imapserver.SessionTracker
	readOnly bool
	saved    imap.UIDSet
}

var _ imapserver.SessionIMAP4rev2 = (*imapConn)(nil)

func (c *imapConn) Close() error {
	c.viewMu.Lock()
	defer c.viewMu.Unlock()
	if c.view != nil {
		c.view.Close()
		c.view, c.box = nil, nil
	}
	return nil
}

func (c *imapConn) Login(user, password string) error {
	if !c.s.login(user, password) {
		return imapserver.ErrAuthFailed
	}
	c.user = user
	return nil
}

func (c *imapConn) open(name, code string) (*box, error) {
	if b, ok := c.s.box(c.user, name, false); ok {
		return b, nil
	}
	return nil, No(code, "No such mailbox")
}

func (c *imapConn) Select(name string, options *imap.SelectOptions) (*imap.SelectData, error) {
	if err := c.Close(); err != nil {
		return nil, err
	}
	b, err := c.open(name, string(imap.ResponseCodeNonExistent))
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c.viewMu.Lock()
	c.box, c.view = b, b.tracker.NewSession()
	c.viewMu.Unlock()
	c.readOnly = options != nil && options.ReadOnly || c.s.options.ReadOnly && b.name == "INBOX"
	flags := []imap.Flag{imap.FlagAnswered, imap.FlagFlagged, imap.FlagDeleted, imap.FlagSeen, imap.FlagDraft}
	data := &imap.SelectData{Flags: flags, NumMessages: uint32(len(b.mails)), UIDNext: b.next, UIDValidity: b.validity}
	if !c.readOnly {
		data.PermanentFlags = append(slices.Clone(flags), imap.FlagWildcard)
	}
	return data, nil
}

func (c *imapConn) Unselect() error { return c.Close() }

func (c *imapConn) Create(name string, options *imap.CreateOptions) error {
	if err := c.s.refuse("CREATE", name, nil); err != nil {
		return err
	}
	if !strings.HasPrefix(name, c.s.options.Prefix) {
		return No("CANNOT", "Mailboxes are made below "+c.s.options.Prefix)
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	name = strings.TrimRight(name, string(c.s.delim))
	if c.s.accounts[c.user][name] != nil {
		return No(string(imap.ResponseCodeAlreadyExists), "Mailbox exists")
	}
	var use imap.MailboxAttr
	if options != nil && len(options.SpecialUse) > 0 {
		use = options.SpecialUse[0]
	}
	c.s.accounts[c.user][name] = c.s.newBox(name, use)
	return nil
}

func (c *imapConn) Delete(name string) error {
	if _, err := c.open(name, string(imap.ResponseCodeNonExistent)); err != nil {
		return err
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	delete(c.s.accounts[c.user], name)
	return nil
}

func (c *imapConn) Rename(name, to string, _ *imap.RenameOptions) error {
	b, err := c.open(name, string(imap.ResponseCodeNonExistent))
	if err != nil {
		return err
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.accounts[c.user][to] != nil {
		return No(string(imap.ResponseCodeAlreadyExists), "Mailbox exists")
	}
	delete(c.s.accounts[c.user], name)
	b.mu.Lock()
	b.name = to
	b.mu.Unlock()
	c.s.accounts[c.user][to] = b
	return nil
}

func (c *imapConn) subscribe(name string, subscribed bool) error {
	b, err := c.open(name, string(imap.ResponseCodeNonExistent))
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subscribed = subscribed
	return nil
}

func (c *imapConn) Subscribe(name string) error   { return c.subscribe(name, true) }
func (c *imapConn) Unsubscribe(name string) error { return c.subscribe(name, false) }

func (c *imapConn) List(w *imapserver.ListWriter, ref string, patterns []string, options *imap.ListOptions) error {
	if len(patterns) == 0 {
		return w.WriteList(&imap.ListData{Attrs: []imap.MailboxAttr{imap.MailboxAttrNoSelect}, Delim: c.s.delim})
	}
	for _, name := range c.s.MailboxNames(c.user) {
		if !slices.ContainsFunc(patterns, func(pattern string) bool {
			return imapserver.MatchList(name, c.s.delim, ref, pattern)
		}) {
			continue
		}
		b, ok := c.s.box(c.user, name, false)
		if !ok {
			continue
		}
		b.mu.Lock()
		data := &imap.ListData{Mailbox: name, Delim: c.s.delim}
		if b.use != "" {
			data.Attrs = append(data.Attrs, b.use)
		}
		if b.subscribed || name == "INBOX" {
			data.Attrs = append(data.Attrs, imap.MailboxAttrSubscribed)
		}
		skip := options.SelectSubscribed && !b.subscribed && name != "INBOX" || options.SelectSpecialUse && b.use == ""
		b.mu.Unlock()
		if skip {
			continue
		}
		if options.ReturnStatus != nil {
			data.Status = b.status(options.ReturnStatus)
		}
		if err := w.WriteList(data); err != nil {
			return err
		}
	}
	return nil
}

func (c *imapConn) Status(name string, options *imap.StatusOptions) (*imap.StatusData, error) {
	b, err := c.open(name, string(imap.ResponseCodeNonExistent))
	if err != nil {
		return nil, err
	}
	return b.status(options), nil
}

func (c *imapConn) Append(name string, r imap.LiteralReader, options *imap.AppendOptions) (*imap.AppendData, error) {
	b, err := c.open(name, string(imap.ResponseCodeTryCreate))
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	at := options.Time
	if at.IsZero() { // APPEND without a date: the present time (RFC 9051, section 6.3.12)
		at = time.Now()
	}
	return &imap.AppendData{UIDValidity: b.validity, UID: b.append(raw, at, options.Flags)}, nil
}

func (c *imapConn) Namespace() (*imap.NamespaceData, error) {
	return &imap.NamespaceData{Personal: []imap.NamespaceDescriptor{
		{Prefix: c.s.options.Prefix, Delim: c.s.delim}}}, nil
}

func (c *imapConn) Poll(w *imapserver.UpdateWriter, allowExpunge bool) error {
	if c.view == nil {
		return nil
	}
	return c.view.Poll(w, allowExpunge)
}

func (c *imapConn) Idle(w *imapserver.UpdateWriter, stop <-chan struct{}) error {
	c.viewMu.Lock()
	view := c.view
	c.viewMu.Unlock()
	if view == nil {
		<-stop
		return nil
	}
	if err := view.Poll(w, true); err != nil {
		return err
	}
	return view.Idle(w, stop)
}

// resolve replaces "*" and "$" in a set of the client's.
func (c *imapConn) resolve(set imap.NumSet) imap.NumSet {
	if imap.IsSearchRes(set) {
		return c.saved
	}
	star := func(start, stop *uint32, last uint32) {
		dynamic := *start == 0 || *stop == 0
		if *start == 0 {
			*start = last
		}
		if *stop == 0 {
			*stop = last
		}
		if dynamic && *start > *stop {
			*start, *stop = *stop, *start
		}
	}
	switch set := set.(type) {
	case imap.SeqSet:
		for i := range set {
			star(&set[i].Start, &set[i].Stop, uint32(len(c.box.mails)))
		}
	case imap.UIDSet:
		last := uint32(0)
		if n := len(c.box.mails); n > 0 {
			last = uint32(c.box.mails[n-1].uid)
		}
		for i := range set {
			start, stop := uint32(set[i].Start), uint32(set[i].Stop)
			star(&start, &stop, last)
			set[i].Start, set[i].Stop = imap.UID(start), imap.UID(stop)
		}
	}
	return set
}

// chosenLocked are the mails of a set with their sequence numbers as this client knows them.
func (c *imapConn) chosenLocked(set imap.NumSet, call func(number uint32, m *stored)) {
	set = c.resolve(set)
	for i, m := range c.box.mails {
		number := c.view.EncodeSeqNum(uint32(i) + 1)
		in := false
		switch set := set.(type) {
		case imap.SeqSet:
			in = number != 0 && set.Contains(number)
		case imap.UIDSet:
			in = number != 0 && set.Contains(m.uid)
		}
		if in {
			call(number, m)
		}
	}
}

func (c *imapConn) chosen(set imap.NumSet) (numbers []uint32, mails []*stored) {
	c.box.mu.Lock()
	defer c.box.mu.Unlock()
	c.chosenLocked(set, func(number uint32, m *stored) {
		numbers = append(numbers, number)
		mails = append(mails, m)
	})
	return numbers, mails
}

func raws(mails []*stored) [][]byte {
	all := make([][]byte, len(mails))
	for i, m := range mails {
		all[i] = m.raw
	}
	return all
}

func (c *imapConn) Fetch(w *imapserver.FetchWriter, set imap.NumSet, options *imap.FetchOptions) error {
	seen := slices.ContainsFunc(options.BodySection, func(s *imap.FetchItemBodySection) bool { return !s.Peek })
	numbers, mails := c.chosen(set)
	for i, m := range mails {
		c.box.mu.Lock()
		if seen && !c.readOnly && !m.flags[imap.FlagSeen] {
			m.flags[imap.FlagSeen] = true
			c.box.tracker.QueueMessageFlags(c.view.DecodeSeqNum(numbers[i]), m.uid, m.flagList(), nil)
		}
		copied := *m
		copied.flags = map[imap.Flag]bool{}
		for flag := range m.flags {
			copied.flags[flag] = true
		}
		c.box.mu.Unlock()
		if err := copied.fetch(w.CreateMessage(numbers[i]), options); err != nil {
			return err
		}
	}
	return nil
}

func (c *imapConn) Search(kind imapserver.NumKind, criteria *imap.SearchCriteria,
	options *imap.SearchOptions) (*imap.SearchData, error) {
	c.box.mu.Lock()
	defer c.box.mu.Unlock()
	c.resolveCriteria(criteria)
	data := &imap.SearchData{}
	var uids imap.UIDSet
	var numbers imap.SeqSet
	for i, m := range c.box.mails {
		number := c.view.EncodeSeqNum(uint32(i) + 1)
		if !m.matches(number, criteria) || number == 0 {
			continue
		}
		n := number
		if kind == imapserver.NumKindUID {
			n = uint32(m.uid)
		}
		uids.AddNum(m.uid)
		numbers.AddNum(number)
		if data.Min == 0 {
			data.Min = n
		}
		data.Max = n
		data.Count++
	}
	data.All = uids
	if kind == imapserver.NumKindSeq {
		data.All = numbers
	}
	if options.ReturnSave {
		c.saved = uids
	}
	return data, nil
}

func (c *imapConn) resolveCriteria(criteria *imap.SearchCriteria) {
	var numbers []imap.SeqSet
	for _, set := range criteria.SeqNum {
		switch set := c.resolve(set).(type) {
		case imap.SeqSet:
			numbers = append(numbers, set)
		case imap.UIDSet:
			criteria.UID = append(criteria.UID, set)
		}
	}
	criteria.SeqNum = numbers
	for i, set := range criteria.UID {
		if resolved, ok := c.resolve(set).(imap.UIDSet); ok {
			criteria.UID[i] = resolved
		}
	}
	for i := range criteria.Not {
		c.resolveCriteria(&criteria.Not[i])
	}
	for i := range criteria.Or {
		c.resolveCriteria(&criteria.Or[i][0])
		c.resolveCriteria(&criteria.Or[i][1])
	}
}

func (c *imapConn) writable() error {
	if c.readOnly {
		return No(string(imap.ResponseCodeNoPerm), "Mailbox is read-only")
	}
	return nil
}

func (c *imapConn) Store(w *imapserver.FetchWriter, set imap.NumSet, flags *imap.StoreFlags,
	_ *imap.StoreOptions) error {
	if err := c.writable(); err != nil {
		return err
	}
	numbers, mails := c.chosen(set)
	if err := c.s.refuse("STORE", c.box.name, raws(mails)); err != nil {
		return err
	}
	c.box.mu.Lock()
	for i, m := range mails {
		if flags.Op == imap.StoreFlagsSet {
			m.flags = map[imap.Flag]bool{}
		}
		for _, flag := range flags.Flags {
			if flags.Op == imap.StoreFlagsDel {
				delete(m.flags, canonical(flag))
			} else {
				m.flags[canonical(flag)] = true
			}
		}
		if number := c.view.DecodeSeqNum(numbers[i]); number != 0 {
			c.box.tracker.QueueMessageFlags(number, m.uid, m.flagList(), c.view)
		}
	}
	c.box.mu.Unlock()
	if flags.Silent {
		return nil
	}
	return c.Fetch(w, set, &imap.FetchOptions{Flags: true})
}

func (c *imapConn) Expunge(_ *imapserver.ExpungeWriter, uids *imap.UIDSet) error {
	if err := c.writable(); err != nil {
		return err
	}
	if err := c.s.refuse("EXPUNGE", c.box.name, nil); err != nil {
		return err
	}
	c.box.mu.Lock()
	defer c.box.mu.Unlock()
	if uids != nil {
		if resolved, ok := c.resolve(*uids).(imap.UIDSet); ok {
			uids = &resolved
		}
	}
	c.box.expungeLocked(func(m *stored) bool {
		return m.flags[imap.FlagDeleted] && (uids == nil || uids.Contains(m.uid))
	})
	return nil
}

// destination of COPY and MOVE.
func (c *imapConn) destination(verb, name string, mails []*stored) (*box, error) {
	if err := c.s.refuse(verb, name, raws(mails)); err != nil {
		return nil, err
	}
	b, err := c.open(name, string(imap.ResponseCodeTryCreate))
	if err == nil && b == c.box {
		return nil, No("CANNOT", "Source and destination are the same mailbox")
	}
	return b, err
}

func (c *imapConn) copyTo(b *box, mails []*stored) *imap.CopyData {
	data := &imap.CopyData{UIDValidity: b.validity}
	var from, to imap.UIDSet
	for _, m := range mails {
		c.box.mu.Lock()
		flags := m.flagList()
		c.box.mu.Unlock()
		from.AddNum(m.uid)
		to.AddNum(b.append(m.raw, m.at, flags))
	}
	data.SourceUIDs, data.DestUIDs = from, to
	return data
}

func (c *imapConn) Copy(set imap.NumSet, name string) (*imap.CopyData, error) {
	_, mails := c.chosen(set)
	b, err := c.destination("COPY", name, mails)
	if err != nil {
		return nil, err
	}
	if slices.Contains(c.s.options.Without, "UIDPLUS") || len(mails) == 0 {
		c.copyTo(b, mails)
		return nil, nil // no COPYUID
	}
	return c.copyTo(b, mails), nil
}

func (c *imapConn) Move(w *imapserver.MoveWriter, set imap.NumSet, name string) error {
	if err := c.writable(); err != nil {
		return err
	}
	_, mails := c.chosen(set)
	b, err := c.destination("MOVE", name, mails)
	if err != nil {
		return err
	}
	data := c.copyTo(b, mails)
	c.box.mu.Lock()
	c.box.expungeLocked(func(m *stored) bool { return slices.Contains(mails, m) })
	c.box.mu.Unlock()
	if len(mails) == 0 || slices.Contains(c.s.options.Without, "UIDPLUS") {
		return nil
	}
	return w.WriteCopyData(data) // EXPUNGE follows, as after every command
}

func (m *stored) envelope() *imap.Envelope {
	header, err := textproto.ReadHeader(bufio.NewReader(bytes.NewReader(m.raw)))
	if err != nil {
		return nil
	}
	return imapserver.ExtractEnvelope(header)
}
