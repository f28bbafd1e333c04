package fetcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/mailbox"
)

// standing is where one place of the mailbox stands in the books.
type standing string

const (
	stored      standing = "stored" // raw mail is in the store, not decided yet
	taken       standing = "taken"  // its event is stored
	skipped     standing = "skipped"
	unsure      standing = "unsure"
	oversize    standing = "oversize"
	beforeStart standing = "before_start"
	putBack     standing = "put_back" // moved back into the Inbox by a person
	dead        standing = "dead"
)

// left tells whether a standing means: stays in the mailbox, on purpose.
func (s standing) left() bool {
	switch s {
	case skipped, unsure, oversize, beforeStart, putBack:
		return true
	}
	return false
}

// pageSize is how many places one page holds. A page is rewritten whole, so it is small enough for that to be cheap and
// large enough for a mailbox of 100 000 mails to need some hundred pages only.
const pageSize = 256

// tombstones of places that have left the mailbox are kept this long, to recognise a mail that is put back.
const keepGone = 30 * 24 * time.Hour

// place is one line of the ledger: a place in the mailbox and what became of the mail that lay there.
type place struct {
	UIDValidity uint32   `json:"v,omitempty"`
	UID         uint32   `json:"u,omitempty"`
	UIDL        string   `json:"l,omitempty"`
	Size        int64    `json:"s,omitempty"`
	Mail        string   `json:"k,omitempty"`
	Standing    standing `json:"st"`
	// Disposition and Fingerprint allow an order to be repeated.
	Disposition contract.Disposition `json:"d,omitempty"`
	Fingerprint string               `json:"f,omitempty"`
	// Revision of the source under which the mail was stored: decisions made under an older one do not count.
	Revision uint64 `json:"rv,omitempty"`
	// Received is the time the server took the mail in, unix seconds.
	Received int64 `json:"r,omitempty"`
	// Since is when the standing began, unix seconds.
	Since int64 `json:"t"`
	// Gone is when the place was found empty, unix seconds; GoneBefore is the UIDNEXT of that moment.
	Gone       int64  `json:"g,omitempty"`
	GoneBefore uint32 `json:"n,omitempty"`

	page int // which page holds it
}

// id identifies a place within one epoch.
func (p *place) id() string { return placeID(p.UIDValidity, p.UID, p.UIDL, p.Size) }

func placeID(validity, uid uint32, uidl string, size int64) string {
	if uidl != "" {
		// UIDLs are reused by some servers, hardly ever with the same size.
		return uidl + "/" + strconv.FormatInt(size, 10)
	}
	return strconv.FormatUint(uint64(validity), 10) + "/" + strconv.FormatUint(uint64(uid), 10)
}

func (p *place) stands(s standing, now time.Time) {
	p.Standing, p.Since = s, now.Unix()
}

// meta is what the ledger knows of a source's mailbox as a whole.
type meta struct {
	Epoch       string             `json:"epoch"`
	UIDValidity uint32             `json:"uid_validity,omitempty"`
	UIDNext     uint32             `json:"uid_next,omitempty"` // the highest UIDNEXT that was seen
	FirstSeen   time.Time          `json:"first_seen"`         // first complete contact of this epoch
	Sent        mailbox.SentCursor `json:"sent,omitzero"`
	SentRead    bool               `json:"sent_read,omitempty"`  // the Sent mailbox was read to its end once
	SentMails   int                `json:"sent_mails,omitempty"` // mails found in it
}

type page struct {
	places   map[string]*place
	revision uint64
	dirty    bool
}

// ledger is the book of one source: which places of its mailbox are known, and how each stands. It is written by the
// one fetcher that holds the source's lease, in pages, each by compare-and-set, so that a fetcher that lost its lease
// cannot write.
type ledger struct {
	bucket  *bus.Bucket
	source  string
	meta    meta
	metaRev uint64

	pages    map[int]*page
	byID     map[string]*place
	byMail   map[string][]*place
	nextPage int
}

func openLedger(ctx context.Context, bucket *bus.Bucket, source, epoch string) (*ledger, error) {
	l := &ledger{bucket: bucket, source: source}
	l.clear()
	entries, err := bucket.List(ctx, source+".>")
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	var old []bus.Entry
	for _, entry := range entries {
		name := strings.TrimPrefix(entry.Key, source+".")
		if name == "meta" {
			if err := json.Unmarshal(entry.Value, &l.meta); err != nil {
				return nil, fmt.Errorf("ledger entry %s: %w", entry.Key, err)
			}
			l.metaRev = entry.Revision
			continue
		}
		pageEpoch, number, _ := strings.Cut(name, ".")
		n, err := strconv.Atoi(number)
		if err != nil || pageEpoch != epoch {
			old = append(old, entry)
			continue
		}
		var places []*place
		if err := json.Unmarshal(entry.Value, &places); err != nil {
			return nil, fmt.Errorf("ledger entry %s: %w", entry.Key, err)
		}
		p := &page{places: map[string]*place{}, revision: entry.Revision}
		l.pages[n] = p
		l.nextPage = max(l.nextPage, n+1)
		for _, line := range places {
			line.page = n
			p.places[line.id()] = line
			l.index(line)
		}
	}
	if l.meta.Epoch != epoch {
		// Another type, server or username: a mailbox of its own. Nothing of the old book holds there.
		l.meta = meta{Epoch: epoch}
	}
	for _, entry := range old {
		if err := bucket.Delete(ctx, entry.Key, entry.Revision); err != nil {
			return nil, fmt.Errorf("drop the ledger of another epoch: %w", err)
		}
	}
	return l, nil
}

func (l *ledger) clear() {
	l.pages = map[int]*page{}
	l.byID = map[string]*place{}
	l.byMail = map[string][]*place{}
}

func (l *ledger) index(line *place) {
	l.byID[line.id()] = line
	if line.Mail != "" {
		l.byMail[line.Mail] = append(l.byMail[line.Mail], line)
	}
}

// find looks a place up.
func (l *ledger) find(e mailbox.Entry) (*place, bool) {
	if e.UID == 0 && e.UIDL == "" {
		return nil, false // POP3 without UIDL: the place has no name
	}
	line, ok := l.byID[placeID(l.meta.UIDValidity, e.UID, e.UIDL, e.Size)]
	return line, ok
}

// add enters a place, or replaces what was known of it.
func (l *ledger) add(line *place) {
	if before, ok := l.byID[line.id()]; ok {
		l.remove(before)
	}
	n := l.nextPage - 1
	if n < 0 || len(l.page(n).places) >= pageSize {
		n = l.nextPage
		l.nextPage++
	}
	line.page = n
	p := l.page(n)
	p.places[line.id()] = line
	p.dirty = true
	l.index(line)
}

func (l *ledger) page(n int) *page {
	p, ok := l.pages[n]
	if !ok {
		p = &page{places: map[string]*place{}}
		l.pages[n] = p
	}
	return p
}

// touch marks a changed place for writing.
func (l *ledger) touch(line *place) { l.page(line.page).dirty = true }

func (l *ledger) remove(line *place) {
	p := l.page(line.page)
	delete(p.places, line.id())
	p.dirty = true
	delete(l.byID, line.id())
	if line.Mail == "" {
		return
	}
	rest := l.byMail[line.Mail][:0]
	for _, other := range l.byMail[line.Mail] {
		if other != line {
			rest = append(rest, other)
		}
	}
	if len(rest) == 0 {
		delete(l.byMail, line.Mail)
	} else {
		l.byMail[line.Mail] = rest
	}
}

// reset forgets every place: the mailbox got a new UIDVALIDITY, so no UID of the old one means anything. Mails keep
// their keys; they are recognised by their bytes.
func (l *ledger) reset(validity uint32) {
	for _, line := range l.byID {
		p := l.page(line.page)
		delete(p.places, line.id())
		p.dirty = true
	}
	l.byID = map[string]*place{}
	l.byMail = map[string][]*place{}
	l.meta.UIDValidity, l.meta.UIDNext = validity, 0
}

// seen compares the ledger with what lies in the mailbox now: places that are gone are marked so, and forgotten after
// a while.
func (l *ledger) seen(entries []mailbox.Entry, uidNext uint32, now time.Time) {
	present := make(map[string]bool, len(entries))
	for _, e := range entries {
		present[placeID(l.meta.UIDValidity, e.UID, e.UIDL, e.Size)] = true
	}
	for id, line := range l.byID {
		switch {
		case present[id]:
			if line.Gone != 0 { // a UIDL that came back is a new mail; a UID never comes back
				l.remove(line)
			}
		case line.Gone == 0:
			if line.Mail == "" || line.UIDL != "" {
				l.remove(line) // nothing to recognise later
				continue
			}
			line.Gone, line.GoneBefore = now.Unix(), uidNext
			l.touch(line)
		case now.Sub(time.Unix(line.Gone, 0)) > keepGone:
			l.remove(line)
		}
	}
}

// holds tells whether a mail that lies in the mailbox has this standing.
func (l *ledger) holds(s standing) bool {
	for _, line := range l.byID {
		if line.Standing == s && line.Gone == 0 {
			return true
		}
	}
	return false
}

// wasPutBack tells whether a mail found under a new UID had left the mailbox before that UID was given out: then a
// person has moved it back. Two places that were there at the same time are twins instead.
func (l *ledger) wasPutBack(mail string, uid uint32) bool {
	if uid == 0 {
		return false
	}
	wasThere := false
	for _, line := range l.byMail[mail] {
		if line.UID == uid {
			continue
		}
		if line.Gone == 0 || line.GoneBefore == 0 || uid < line.GoneBefore {
			return false
		}
		wasThere = true
	}
	return wasThere
}

// save writes what changed. It fails with store.conflict when somebody else has written: the lease is lost then.
func (l *ledger) save(ctx context.Context) error {
	var errs []error
	for n, p := range l.pages {
		if !p.dirty {
			continue
		}
		key := l.source + "." + l.meta.Epoch + "." + strconv.Itoa(n)
		if len(p.places) == 0 {
			if p.revision != 0 {
				if err := l.bucket.Delete(ctx, key, p.revision); err != nil {
					errs = append(errs, err)
					continue
				}
			}
			delete(l.pages, n)
			continue
		}
		lines := make([]*place, 0, len(p.places))
		for _, line := range p.places {
			lines = append(lines, line)
		}
		value, err := json.Marshal(lines)
		if err != nil {
			return err
		}
		revision, err := write(ctx, l.bucket, key, value, p.revision)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.revision, p.dirty = revision, false
	}
	if len(errs) > 0 {
		return fmt.Errorf("write the ledger: %w", errors.Join(errs...))
	}
	return nil
}

// saveMeta writes what is known of the mailbox as a whole.
func (l *ledger) saveMeta(ctx context.Context) error {
	value, err := json.Marshal(l.meta)
	if err != nil {
		return err
	}
	revision, err := write(ctx, l.bucket, l.source+".meta", value, l.metaRev)
	if err != nil {
		return fmt.Errorf("write the ledger: %w", err)
	}
	l.metaRev = revision
	return nil
}

func write(ctx context.Context, bucket *bus.Bucket, key string, value []byte, revision uint64) (uint64, error) {
	if revision == 0 {
		return bucket.Create(ctx, key, value)
	}
	return bucket.Update(ctx, key, value, revision)
}
