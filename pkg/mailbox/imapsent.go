package mailbox

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/emersion/go-imap/v2"

	"posthorn/pkg/fault"
)

// sentNames are what mail programs call the Sent mailbox where the server marks none, the commonest first.
var sentNames = []string{"Sent", "Sent Items", "Sent Messages", "Sent Mail", "Lähetetyt", "Lähetetyt viestit",
	"Lähetetty", "Skickat", "Skickade", "Skickade objekt", "Gesendet", "Gesendete Objekte", "Gesendete Elemente",
	"Sendt", "Sendte elementer", "Sendt post", "Saadetud", "Saadetud kirjad", "Envoyés", "Éléments envoyés",
	"Messages envoyés", "Enviados", "Elementos enviados", "Inviata", "Posta inviata", "Verzonden", "Verzonden items",
	"Wysłane", "Elementy wysłane", "Отправленные"} //nolint:misspell // Polish

// sentFields are the header fields that the sent index is made of.
var sentFields = []string{"MESSAGE-ID", "IN-REPLY-TO", "REFERENCES", "DATE", "TO", "CC", "SUBJECT",
	"X-GM-MESSAGE-ID", "X-SES-MESSAGE-ID", "X-MICROSOFT-ORIGINAL-MESSAGE-ID"}

// Sent reads the Sent mailbox, found by the mark \Sent (RFC 6154) or by its name, and opens the Inbox again; after an
// error the cursor returned is as far as every mail has been given to each. A Sent mailbox without any mail is no
// error: the cursor's Last is 0 then.
func (s *imapSession) Sent(ctx context.Context, from SentCursor, call func(SentMail) error) (SentCursor, error) {
	cursor, err := s.readSent(ctx, from, call)
	if ctx.Err() != nil {
		return cursor, context.Cause(ctx)
	}
	if s.dead() {
		return cursor, err
	}
	if openErr := s.open(ctx); err == nil {
		err = openErr
	}
	return cursor, err
}

func (s *imapSession) readSent(ctx context.Context, cursor SentCursor, call func(SentMail) error) (SentCursor, error) {
	var data *imap.SelectData
	var err error
	if cursor.Mailbox != "" {
		data, err = s.examine(ctx, cursor.Mailbox, true)
		if err != nil && s.dead() {
			return cursor, err
		}
	}
	if data == nil || err != nil {
		mailbox, err := s.sentMailbox(ctx)
		if err != nil {
			return cursor, err
		}
		if mailbox != cursor.Mailbox {
			cursor = SentCursor{Mailbox: mailbox}
		}
		if data, err = s.examine(ctx, mailbox, true); err != nil {
			return cursor, err
		}
	}
	if data.UIDValidity != cursor.UIDValidity {
		cursor.UIDValidity, cursor.Last = data.UIDValidity, 0
	}
	if data.NumMessages == 0 {
		return cursor, nil
	}
	var after imap.UIDSet
	after.AddRange(imap.UID(cursor.Last)+1, 0)
	uids, err := s.search(ctx, &imap.SearchCriteria{UID: []imap.UIDSet{after}})
	if err != nil {
		return cursor, err
	}
	// n:* always holds the last mail, even when its UID is below n.
	uids = slices.DeleteFunc(uids, func(uid imap.UID) bool { return uint32(uid) <= cursor.Last })
	section := &imap.FetchItemBodySection{Specifier: imap.PartSpecifierHeader, Peek: true, HeaderFields: sentFields}
	for batch := range slices.Chunk(uids, headerBatch) {
		var own error
		err := s.command(ctx, "reading sent mail", 4*longestHeader+int64(len(batch))*16<<10, func() error {
			options := &imap.FetchOptions{UID: true, BodySection: []*imap.FetchItemBodySection{section}}
			return s.each(s.client.Fetch(imap.UIDSetNum(batch...), options), func(msg *fetched) error {
				if !msg.asked {
					return nil
				}
				header, err := readHeader(msg.body)
				if err != nil {
					return errors.Join(err, io.ErrUnexpectedEOF)
				}
				own = call(SentMail{UID: uint32(msg.uid), Header: header})
				return own
			})
		})
		if own != nil && !s.dead() {
			return cursor, own
		}
		if err != nil {
			return cursor, err
		}
		cursor.Last = uint32(batch[len(batch)-1])
	}
	return cursor, nil
}

func (s *imapSession) sentMailbox(ctx context.Context) (string, error) {
	mailboxes, err := s.list(ctx, "*")
	if err != nil {
		return "", err
	}
	mailboxes = slices.DeleteFunc(mailboxes, func(m *imap.ListData) bool {
		return !selectable(m) || strings.EqualFold(m.Mailbox, "INBOX")
	})
	for _, m := range mailboxes {
		if slices.Contains(m.Attrs, imap.MailboxAttrSent) {
			return m.Mailbox, nil
		}
	}
	prefix, err := s.prefix(ctx)
	if err != nil {
		return "", err
	}
	for _, name := range sentNames {
		for _, m := range mailboxes {
			if own := strings.TrimPrefix(m.Mailbox, prefix); strings.EqualFold(own, name) ||
				m.Delim != 0 && strings.EqualFold(own, "INBOX"+string(m.Delim)+name) {
				return m.Mailbox, nil
			}
		}
	}
	return "", fault.New(fault.MailboxNoSent, nil, params(s.settings))
}
