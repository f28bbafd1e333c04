package reply

import (
	"net/mail"
	"strings"
	"time"

	"posthorn/pkg/contract"
)

// ReceivedDate is when the last server took the mail in: the date of the topmost Received field (RFC 5321 section
// 4.4). ok is false when there is none that can be read.
func ReceivedDate(h Header) (at time.Time, ok bool) {
	fields := h.All("Received")
	if len(fields) == 0 {
		return time.Time{}, false
	}
	return date(fields[0][strings.LastIndexByte(fields[0], ';')+1:])
}

// SentDate is the Date field (RFC 5322 section 3.6.1).
func SentDate(h Header) (at time.Time, ok bool) {
	for _, value := range h.All("Date") {
		if at, ok := date(value); ok {
			return at, true
		}
	}
	return time.Time{}, false
}

// date reads a date as mail programs write it, also some that RFC 5322 does not know. It is in UTC and of a year that
// JSON can carry.
func date(value string) (time.Time, bool) {
	value = strings.Join(strings.Fields(value), " ")
	at, err := mail.ParseDate(value)
	if err != nil {
		if cut := strings.IndexByte(value, '('); cut > 0 {
			value = strings.TrimSpace(value[:cut])
		}
		for _, layout := range []string{
			"Mon, 2 Jan 2006 15:04:05 -0700", "Mon, 2 Jan 2006 15:04:05 MST", "2 Jan 2006 15:04:05 -0700",
			"Mon, 2 Jan 2006 15:04:05", "Mon, 2 Jan 2006 15:04 -0700", "Mon 2 Jan 2006 15:04:05 -0700",
			"Mon Jan 2 15:04:05 2006", "Mon Jan 2 15:04:05 MST 2006", "Monday, 2 January 2006 15:04:05 -0700",
			"2006-01-02 15:04:05 -0700", "2006-01-02 15:04:05", time.RFC3339,
		} {
			if at, err = time.Parse(layout, value); err == nil {
				break
			}
		}
	}
	at = at.UTC()
	if err != nil || at.Year() < 1970 || at.Year() > 9999 {
		return time.Time{}, false
	}
	return at, true
}

// Summary is what a receipt shows of a mail: decoded subject, first sender and Message-ID with its angle brackets, each
// empty when the header has none.
func (h Header) Summary() (subject string, from *contract.Address, messageID string) {
	if values := h.All("Subject"); len(values) > 0 {
		subject = DecodeWords(values[0])
		if runes := []rune(subject); len(runes) > 200 {
			subject = string(runes[:200]) + "…"
		}
	}
	if senders := Addresses(h.All("From")); len(senders) > 0 {
		from = &senders[0]
	}
	if ids := IDs(h.All("Message-ID")); len(ids) > 0 {
		messageID = ids[0]
	}
	return subject, from, messageID
}
