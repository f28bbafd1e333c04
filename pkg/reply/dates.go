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

func date(value string) (time.Time, bool) {
	at, err := mail.ParseDate(strings.TrimSpace(value))
	return at, err == nil && at.Year() > 1 && at.Year() < 10000
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
