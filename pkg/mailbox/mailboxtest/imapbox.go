package mailboxtest

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
)

// box is one mailbox. Its lock is held while the tracker is told, so that clients see changes in order.
type box struct {
	name     string
	use      imap.MailboxAttr
	validity uint32
	tracker  *imapserver.MailboxTracker

	mu         sync.Mutex
	mails      []*stored
	next       imap.UID
	subscribed bool
}

type stored struct {
	uid   imap.UID
	raw   []byte
	at    time.Time
	flags map[imap.Flag]bool
}

func (m *stored) flagList() []imap.Flag {
	var flags []imap.Flag
	for flag := range m.flags {
		flags = append(flags, flag)
	}
	slices.Sort(flags)
	return flags
}

// canonical spells system flags as RFC 9051 does.
func canonical(flag imap.Flag) imap.Flag {
	for _, known := range []imap.Flag{imap.FlagSeen, imap.FlagAnswered, imap.FlagFlagged, imap.FlagDeleted,
		imap.FlagDraft} {
		if strings.EqualFold(string(known), string(flag)) {
			return known
		}
	}
	return flag
}

func (b *box) append(raw []byte, at time.Time, flags []imap.Flag) imap.UID {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := &stored{uid: b.next, raw: raw, at: at, flags: map[imap.Flag]bool{}}
	for _, flag := range flags {
		m.flags[canonical(flag)] = true
	}
	b.next++
	b.mails = append(b.mails, m)
	b.tracker.QueueNumMessages(uint32(len(b.mails)))
	return m.uid
}

// expungeLocked removes mails and tells every client.
func (b *box) expungeLocked(gone func(*stored) bool) {
	for i := len(b.mails) - 1; i >= 0; i-- {
		if gone(b.mails[i]) {
			b.tracker.QueueExpunge(uint32(i) + 1)
			b.mails = slices.Delete(b.mails, i, i+1)
		}
	}
}

func (b *box) status(options *imap.StatusOptions) *imap.StatusData {
	b.mu.Lock()
	defer b.mu.Unlock()
	data := &imap.StatusData{Mailbox: b.name, UIDNext: b.next, UIDValidity: b.validity}
	count := func(with func(*stored) bool) *uint32 {
		n := uint32(0)
		for _, m := range b.mails {
			if with(m) {
				n++
			}
		}
		return &n
	}
	if options.NumMessages {
		data.NumMessages = count(func(*stored) bool { return true })
	}
	if options.NumUnseen {
		data.NumUnseen = count(func(m *stored) bool { return !m.flags[imap.FlagSeen] })
	}
	if options.NumDeleted {
		data.NumDeleted = count(func(m *stored) bool { return m.flags[imap.FlagDeleted] })
	}
	if options.NumRecent {
		data.NumRecent = count(func(*stored) bool { return false })
	}
	if options.Size {
		size := int64(0)
		for _, m := range b.mails {
			size += int64(len(m.raw))
		}
		data.Size = &size
	}
	return data
}

func (m *stored) fetch(w *imapserver.FetchResponseWriter, options *imap.FetchOptions) error {
	w.WriteUID(m.uid)
	if options.Flags {
		w.WriteFlags(m.flagList())
	}
	if options.InternalDate {
		w.WriteInternalDate(m.at)
	}
	if options.RFC822Size {
		w.WriteRFC822Size(int64(len(m.raw)))
	}
	if options.Envelope {
		w.WriteEnvelope(m.envelope())
	}
	if options.BodyStructure != nil {
		w.WriteBodyStructure(imapserver.ExtractBodyStructure(bytes.NewReader(m.raw)))
	}
	for _, section := range options.BodySection {
		content := m.section(section)
		literal := w.WriteBodySection(section, int64(len(content)))
		if _, err := literal.Write(content); err != nil {
			_ = literal.Close() // the connection is gone
			return err
		}
		if err := literal.Close(); err != nil {
			return err
		}
	}
	return w.Close()
}

// section is BODY[…]. The whole mail and its header are cut from the bytes as they are; go-imap would parse them and
// put them together again.
func (m *stored) section(section *imap.FetchItemBodySection) []byte {
	whole := len(section.Part) == 0 && section.Specifier == imap.PartSpecifierNone
	header := len(section.Part) == 0 && section.Specifier == imap.PartSpecifierHeader &&
		len(section.HeaderFields) == 0 && len(section.HeaderFieldsNot) == 0
	var content []byte
	switch {
	case whole:
		content = m.raw
	case header:
		content, _ = m.split()
	default:
		return imapserver.ExtractBodySection(bytes.NewReader(m.raw), section)
	}
	if p := section.Partial; p != nil {
		from := min(p.Offset, int64(len(content)))
		content = content[from:min(from+p.Size, int64(len(content)))]
	}
	return content
}

func (m *stored) split() (header, body []byte) {
	if at := bytes.Index(m.raw, []byte("\r\n\r\n")); at >= 0 {
		return m.raw[:at+4], m.raw[at+4:]
	}
	return m.raw, nil
}

// field is the value of the first header field of a name, unfolded; "" when there is none.
func (m *stored) field(name string) (string, bool) {
	header, _ := m.split()
	unfolded := strings.NewReplacer("\r\n ", " ", "\r\n\t", " ").Replace(string(header))
	for line := range strings.SplitSeq(unfolded, "\r\n") {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(strings.TrimSpace(key), name) {
			return strings.TrimSpace(value), true
		}
	}
	return "", false
}

func (m *stored) matches(number uint32, c *imap.SearchCriteria) bool {
	for _, set := range c.SeqNum {
		if number == 0 || !set.Contains(number) {
			return false
		}
	}
	for _, set := range c.UID {
		if !set.Contains(m.uid) {
			return false
		}
	}
	day := m.at.Truncate(24 * time.Hour)
	if !c.Since.IsZero() && day.Before(c.Since) || !c.Before.IsZero() && !day.Before(c.Before) {
		return false
	}
	for _, flag := range c.Flag {
		if !m.flags[canonical(flag)] {
			return false
		}
	}
	for _, flag := range c.NotFlag {
		if m.flags[canonical(flag)] {
			return false
		}
	}
	if c.Larger != 0 && int64(len(m.raw)) <= c.Larger || c.Smaller != 0 && int64(len(m.raw)) >= c.Smaller {
		return false
	}
	for _, h := range c.Header {
		value, ok := m.field(h.Key)
		if !ok || !strings.Contains(strings.ToLower(value), strings.ToLower(h.Value)) {
			return false
		}
	}
	_, body := m.split()
	for _, text := range c.Body {
		if !bytes.Contains(bytes.ToLower(body), bytes.ToLower([]byte(text))) {
			return false
		}
	}
	for _, text := range c.Text {
		if !bytes.Contains(bytes.ToLower(m.raw), bytes.ToLower([]byte(text))) {
			return false
		}
	}
	for i := range c.Not {
		if m.matches(number, &c.Not[i]) {
			return false
		}
	}
	for i := range c.Or {
		if !m.matches(number, &c.Or[i][0]) && !m.matches(number, &c.Or[i][1]) {
			return false
		}
	}
	return true
}
