package mailbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/emersion/go-imap/v2"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

const (
	moveBatch = 200
	// mostRefusals is how many single mails may be refused in a row before the others are not tried.
	mostRefusals = 8
	// mostCopies is how many mails of the archive are compared with one target.
	mostCopies = 5
)

// disposal is one call of Dispose. verdicts holds what came of the mail at each UID; a UID without one is unknown.
type disposal struct {
	*imapSession

	ctx      context.Context // lives for one call
	what     contract.Disposition
	named    string // the configured archive mailbox
	targets  map[imap.UID]Target
	verdicts map[imap.UID]Result
	flagged  map[imap.UID]bool // flagged \Deleted before we came
	refusals int
}

// Dispose moves or deletes. What it touches has been identified under the same UIDVALIDITY; it removes single mails
// only (UID MOVE, UID EXPUNGE), never what somebody else flagged.
func (s *imapSession) Dispose(ctx context.Context, what contract.Disposition, archive string,
	targets []Target) ([]Result, error) {
	// Anew: a server may hide what arrived since it was opened, and what is hidden is not gone.
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	d := &disposal{imapSession: s, ctx: ctx, what: what, named: archive, targets: map[imap.UID]Target{},
		verdicts: map[imap.UID]Result{}, flagged: map[imap.UID]bool{}}
	var order []imap.UID
	for _, t := range targets {
		uid := imap.UID(t.Place.UID)
		if s.current(t.Place) && d.targets[uid] == (Target{}) {
			d.targets[uid] = t
			order = append(order, uid)
		}
	}
	err := d.run(order)
	results := make([]Result, 0, len(targets))
	var others []Target
	for _, t := range targets {
		result, known := d.verdicts[imap.UID(t.Place.UID)]
		switch {
		case !s.current(t.Place):
			result = Result{Outcome: contract.OutcomeSuperseded}
		case !known:
			continue
		case d.targets[imap.UID(t.Place.UID)] != t:
			others = append(others, t) // an order of its own for the same place: see what is there now
			continue
		}
		result.Target = t
		results = append(results, result)
	}
	if err != nil || len(others) == 0 {
		return results, err
	}
	more, err := s.Dispose(ctx, what, archive, others)
	return append(results, more...), err
}

// current tells whether a place belongs to the Inbox as it is now.
func (s *imapSession) current(p contract.Place) bool {
	return p.Protocol != string(POP3) && p.UID != 0 && p.UIDValidity == s.status.UIDValidity
}

func (d *disposal) run(order []imap.UID) error {
	if d.what == contract.Leave {
		d.decide(order, Result{Outcome: contract.OutcomeLeft})
		return nil
	}
	present, err := d.identify(order)
	if err != nil || len(present) == 0 {
		return err
	}
	if d.mode != Write || d.status.ReadOnly {
		d.decide(present, Result{Err: fault.New(fault.MailboxReadOnly, nil, params(d.settings, "mailbox", "INBOX"))})
		return nil
	}
	if d.what == contract.Delete {
		return d.remove(present)
	}
	return d.store(present)
}

func (d *disposal) decide(uids []imap.UID, result Result) {
	for _, uid := range uids {
		d.verdicts[uid] = result
	}
}

// identify reads size and header of the targets and keeps those that are what they should be.
func (d *disposal) identify(order []imap.UID) ([]imap.UID, error) {
	section := &imap.FetchItemBodySection{Specifier: imap.PartSpecifierHeader, Peek: true}
	var present []imap.UID
	for batch := range slices.Chunk(order, headerBatch) {
		type found struct {
			fetched

			fingerprint string
		}
		seen := map[imap.UID]*found{}
		budget := int64(4 * longestHeader)
		for _, uid := range batch {
			budget += allowance(d.targets[uid].Place.Size) // a header block is as long as its mail at most
		}
		err := d.command(d.ctx, "identifying mails", budget, func() error {
			options := &imap.FetchOptions{UID: true, Flags: true, RFC822Size: true,
				BodySection: []*imap.FetchItemBodySection{section}}
			return d.eachWhole(d.client.Fetch(imap.UIDSetNum(batch...), options), func(msg *fetched) error {
				if !msg.asked {
					return nil
				}
				header, err := readHeader(msg.body)
				seen[msg.uid] = &found{fingerprint: Fingerprint(header)}
				return err
			}, func(msg *fetched) {
				if f := seen[msg.uid]; f != nil {
					f.fetched = *msg
				}
			})
		})
		if err != nil {
			return nil, err
		}
		// A missing answer does not prove that a mail is gone: an update of its flags can take the answer's place.
		missing := slices.DeleteFunc(slices.Clone(batch), func(uid imap.UID) bool { return seen[uid] != nil })
		if len(missing) > 0 {
			if missing, err = d.present(missing); err != nil {
				return nil, err
			}
		}
		for _, uid := range batch {
			place := d.targets[uid].Place
			switch f := seen[uid]; {
			case f == nil && slices.Contains(missing, uid):
				d.verdicts[uid] = Result{Err: fault.New(fault.ProtocolBroken, errors.New("no header of a mail that is there"),
					params(d.settings, "step", "identifying mails"))}
			case f == nil:
				d.verdicts[uid] = Result{Outcome: contract.OutcomeGone}
			case f.size < 0:
				d.verdicts[uid] = Result{Err: fault.New(fault.ProtocolBroken, errors.New("no size"),
					params(d.settings, "step", "identifying mails"))}
			case f.size != place.Size, place.Fingerprint != "" && place.Fingerprint != f.fingerprint:
				d.verdicts[uid] = Result{Outcome: contract.OutcomeMismatch}
			default:
				d.flagged[uid] = slices.Contains(f.flags, imap.FlagDeleted)
				present = append(present, uid)
			}
		}
	}
	return present, nil
}

// remove deletes. At Gmail, what is expunged from the Inbox lives on in "All Mail": there it is moved to the bin.
func (d *disposal) remove(uids []imap.UID) error {
	if d.caps["X-GM-EXT-1"] && d.caps["MOVE"] {
		mailboxes, err := d.list(d.ctx, "*")
		if err != nil && d.dead() {
			return err
		}
		for _, m := range mailboxes {
			if slices.Contains(m.Attrs, imap.MailboxAttrTrash) && selectable(m) {
				d.named = m.Mailbox
				return d.move(uids, m.Mailbox, contract.OutcomeDeleted)
			}
		}
	}
	return d.expunge(uids, Result{Outcome: contract.OutcomeDeleted})
}

// store archives.
func (d *disposal) store(uids []imap.UID) error {
	mailbox, err := d.archiveMailbox(d.ctx, d.named, true)
	if err != nil {
		if d.dead() {
			return err
		}
		d.decide(uids, Result{Err: err})
		return nil
	}
	// Whoever copied a mail and died before flagging or expunging it left a copy behind. With MOVE only a mail that is
	// flagged can be such a one.
	suspects := slices.DeleteFunc(slices.Clone(uids), func(uid imap.UID) bool { return d.caps["MOVE"] && !d.flagged[uid] })
	copies, err := d.copies(mailbox, suspects)
	if err != nil {
		return err
	}
	var stored, fresh []imap.UID
	for _, uid := range uids {
		if copies[uid] {
			stored = append(stored, uid)
		} else {
			fresh = append(fresh, uid)
		}
	}
	archived := Result{Outcome: contract.OutcomeArchived, Mailbox: mailbox}
	if err := d.expunge(stored, archived); err != nil {
		return err
	}
	if d.caps["MOVE"] {
		return d.move(fresh, mailbox, contract.OutcomeArchived)
	}
	for batch := range slices.Chunk(fresh, moveBatch) {
		copied, err := d.copy(batch, mailbox, true)
		if err != nil {
			return err
		}
		if err := d.expunge(copied, archived); err != nil {
			return err
		}
	}
	return nil
}

// move moves with UID MOVE (RFC 6851), and finds by halving which mails a refusal is about.
func (d *disposal) move(uids []imap.UID, mailbox, outcome string) error {
	if !d.client.Caps().Has(imap.CapMove) {
		return d.broken("moving mails", errors.New("MOVE was taken back")) // go-imap would fall back to EXPUNGE
	}
	for batch := range slices.Chunk(uids, moveBatch) {
		if err := d.moveSet(batch, mailbox, outcome, true); err != nil {
			return err
		}
	}
	return nil
}

func (d *disposal) moveSet(uids []imap.UID, mailbox, outcome string, mayCreate bool) error {
	if d.gaveUp(uids, mailbox) {
		return nil
	}
	err := d.command(d.ctx, "moving mails", budgetControl, func() error {
		_, err := d.client.Move(imap.UIDSetNum(uids...), mailbox).Wait()
		return err
	})
	if err != nil && d.dead() {
		return err
	}
	if again, createErr := d.tryCreate(err, mailbox, mayCreate); again {
		return d.moveSet(uids, mailbox, outcome, false)
	} else if createErr != nil {
		if d.dead() {
			return createErr
		}
		d.decide(uids, Result{Err: createErr})
		return nil
	}
	left, presentErr := d.present(uids) // OK is no proof, nor does NO mean that none was moved
	if presentErr != nil {
		return presentErr
	}
	for _, uid := range uids {
		if !slices.Contains(left, uid) {
			result := Result{Outcome: outcome, Mailbox: mailbox}
			if outcome == contract.OutcomeDeleted {
				result.Mailbox = ""
			}
			d.verdicts[uid] = result
			d.refusals = 0
		}
	}
	if err == nil {
		d.decide(left, Result{Err: d.refusedBy(refusal{words: ""}, mailbox)})
		return nil
	}
	return d.halve(left, err, mailbox, func(half []imap.UID) error {
		return d.moveSet(half, mailbox, outcome, false)
	})
}

// copy copies and returns the UIDs that are surely in the mailbox now.
func (d *disposal) copy(uids []imap.UID, mailbox string, mayCreate bool) ([]imap.UID, error) {
	if d.gaveUp(uids, mailbox) {
		return nil, nil
	}
	var data *imap.CopyData
	err := d.command(d.ctx, "copying mails", budgetControl, func() (err error) {
		data, err = d.client.Copy(imap.UIDSetNum(uids...), mailbox).Wait()
		return err
	})
	if err != nil && d.dead() {
		return nil, err
	}
	if again, createErr := d.tryCreate(err, mailbox, mayCreate); again {
		return d.copy(uids, mailbox, false)
	} else if createErr != nil {
		if d.dead() {
			return nil, createErr
		}
		d.decide(uids, Result{Err: createErr})
		return nil, nil
	}
	if err == nil {
		d.refusals = 0
		if len(data.SourceUIDs) == 0 {
			return uids, nil // without UIDPLUS the tagged OK must do: COPY takes all or none (RFC 3501 section 6.4.7)
		}
		copied := slices.DeleteFunc(slices.Clone(uids), func(uid imap.UID) bool { return !data.SourceUIDs.Contains(uid) })
		for _, uid := range uids {
			if !data.SourceUIDs.Contains(uid) {
				d.verdicts[uid] = Result{Outcome: contract.OutcomeGone}
			}
		}
		return copied, nil
	}
	var copied []imap.UID
	err = d.halve(uids, err, mailbox, func(half []imap.UID) error {
		some, err := d.copy(half, mailbox, false)
		copied = append(copied, some...)
		return err
	})
	return copied, err
}

// halve tries the halves of a set that was refused as a whole; a single mail that is refused keeps its error.
func (d *disposal) halve(uids []imap.UID, err error, mailbox string, try func([]imap.UID) error) error {
	switch len(uids) {
	case 0:
		return nil
	case 1:
		d.refusals++
		d.decide(uids, Result{Err: d.archiveFault(err, mailbox)})
		return nil
	}
	middle := len(uids) / 2
	if err := try(uids[:middle]); err != nil {
		return err
	}
	return try(uids[middle:])
}

// gaveUp spares the server a command for every mail when none is let through.
func (d *disposal) gaveUp(uids []imap.UID, mailbox string) bool {
	if d.refusals < mostRefusals {
		return false
	}
	d.decide(uids, Result{Err: d.refusedBy(refusal{words: "the same for the mails before it"}, mailbox)})
	return true
}

func (d *disposal) refusedBy(r refusal, mailbox string) *fault.Error {
	return fault.New(fault.ArchiveRefused, r, params(d.settings, "mailbox", mailbox, "words", r.words))
}

// archiveFault is what a refused MOVE or COPY means.
func (d *disposal) archiveFault(err error, mailbox string) error {
	r, ok := errors.AsType[refusal](err)
	if !ok {
		return err
	}
	f := r.fault(d.settings, "moving mails", false)
	switch {
	case f.Code == fault.MailboxOverQuota:
		return fault.New(f.Code, r, params(d.settings, "mailbox", mailbox, "words", r.words))
	case f.Code.Class() == "limit" && f.Code != fault.LimitUnavailable: // what is not available is the archive
		return f
	}
	return d.refusedBy(r, mailbox)
}

// tryCreate makes the mailbox when a refusal asks for it, once.
func (d *disposal) tryCreate(err error, mailbox string, may bool) (again bool, failed error) {
	r, ok := errors.AsType[refusal](err)
	if !ok || r.code != "TRYCREATE" || !may {
		return false, nil
	}
	if err := d.create(d.ctx, mailbox); err != nil {
		return false, err
	}
	return true, nil
}

// expunge flags and removes exactly these mails. Without UIDPLUS (RFC 4315) they stay, flagged.
func (d *disposal) expunge(uids []imap.UID, done Result) error {
	for batch := range slices.Chunk(uids, moveBatch) {
		set := imap.UIDSetNum(batch...)
		err := d.command(d.ctx, "flagging mails", budgetControl, func() error {
			return d.client.Store(set, &imap.StoreFlags{Op: imap.StoreFlagsAdd, Silent: true,
				Flags: []imap.Flag{imap.FlagDeleted}}, nil).Close()
		})
		if err != nil {
			if d.dead() {
				return err
			}
			if fault.CodeOf(err).Class() != "limit" {
				err = fault.New(fault.MailboxReadOnly, err, params(d.settings, "mailbox", "INBOX"))
			}
			d.decide(batch, Result{Err: err})
			continue
		}
		flagged := Result{Outcome: contract.OutcomeFlagged, Mailbox: done.Mailbox}
		d.decide(batch, flagged)
		if !d.caps["UIDPLUS"] {
			continue
		}
		err = d.command(d.ctx, "removing mails", budgetControl, func() error { return d.client.UIDExpunge(set).Close() })
		if err != nil && d.dead() {
			return err
		}
		left, err := d.present(batch)
		if err != nil {
			return err
		}
		for _, uid := range batch {
			if !slices.Contains(left, uid) {
				d.verdicts[uid] = done
			}
		}
	}
	return nil
}

// present tells which of the mails are still in the Inbox.
func (d *disposal) present(uids []imap.UID) ([]imap.UID, error) {
	found, err := d.search(d.ctx, &imap.SearchCriteria{UID: []imap.UIDSet{imap.UIDSetNum(uids...)}})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(uids), func(uid imap.UID) bool { return !slices.Contains(found, uid) }), nil
}

// copies tells which targets have a copy in the mailbox already: same size, same digest. The Inbox is open again when
// it returns.
func (d *disposal) copies(mailbox string, uids []imap.UID) (copies map[imap.UID]bool, err error) {
	copies = map[imap.UID]bool{}
	if len(uids) == 0 {
		return copies, nil
	}
	data, err := d.examine(d.ctx, mailbox, true)
	if err == nil && data.NumMessages > 0 {
		for _, uid := range uids {
			var found bool
			if found, err = d.hasCopy(d.targets[uid]); err != nil {
				break
			}
			copies[uid] = found
		}
	}
	if err != nil && d.dead() {
		return nil, err
	}
	before := d.status
	if err := d.open(d.ctx); err != nil {
		return nil, err
	}
	if d.status.UIDValidity != before.UIDValidity {
		return nil, d.broken("opening INBOX", errors.New("UIDVALIDITY changed while mails were being archived"))
	}
	return copies, nil
}

func (d *disposal) hasCopy(t Target) (bool, error) {
	criteria := &imap.SearchCriteria{Larger: t.Place.Size - 1, Smaller: t.Place.Size + 1}
	if id := contract.NormalMessageID(t.MessageID); id != "" && isASCII(id) {
		criteria = &imap.SearchCriteria{Header: []imap.SearchCriteriaHeaderField{{Key: "Message-ID", Value: id}}}
	}
	candidates, err := d.search(d.ctx, criteria)
	if err != nil {
		if d.dead() {
			return false, err
		}
		return false, nil // a server that cannot search makes a second copy after a crash; it loses nothing
	}
	if len(candidates) > mostCopies {
		candidates = candidates[len(candidates)-mostCopies:]
	}
	mails := make([]Entry, len(candidates))
	for i, uid := range candidates {
		mails[i] = Entry{UID: uint32(uid)}
	}
	infos, err := d.Describe(d.ctx, mails)
	if err != nil {
		return false, err
	}
	same := false
	for _, info := range infos {
		if info.Size != t.Place.Size || same {
			continue
		}
		err := d.fetchBodies(d.ctx, []Entry{info.Entry}, func(_ Entry, _ int64, body io.Reader) error {
			digest := sha256.New()
			if _, err := io.Copy(digest, body); err != nil {
				return err
			}
			same = same || strings.EqualFold(hex.EncodeToString(digest.Sum(nil)), t.SHA256)
			return nil
		})
		if err != nil && d.dead() {
			return false, err
		}
	}
	return same, nil
}
