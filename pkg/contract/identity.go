package contract

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"strconv"
	"strings"
)

var tokenEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// MailKey is the identity of one mail: 32 characters made of the source's id and the SHA-256 of the mail's bytes. It
// survives crashes, new fetches, UIDVALIDITY changes, moves by hand, restores and migrations. Equal bytes from one
// source are one mail.
func MailKey(source string, digest [sha256.Size]byte) string {
	return hashToken("posthorn mail", source, hex.EncodeToString(digest[:]))
}

// OpeningID is the event id of the one event a mail makes, whether `received` or `replied`: it does not tell them
// apart, so that the broker refuses the second even inside one atomic batch.
func OpeningID(mail string) string { return EventID(mail, "opening", 1) }

// EventID is the id (`ce-id` and `Nats-Msg-Id`) of one event: derived from key, event and revision, so it is the same
// over redelivery, replay and restore.
func EventID(key, event string, revision int) string {
	return hashToken("posthorn event", key, event, strconv.Itoa(revision))
}

// MessageIDKey is the token under which a Message-ID is looked up within one source (sent index, threads). The id is
// compared without angle brackets and surrounding blanks, its domain in lower case (RFC 5322 section 3.6.4). An empty
// id has no key: "" is returned, and matches nothing.
func MessageIDKey(source, id string) string {
	id = NormalMessageID(id)
	if id == "" {
		return ""
	}
	return hashToken("posthorn message-id", source, id)
}

// NormalMessageID strips angle brackets and blanks from a Message-ID and lowers the case of its domain.
func NormalMessageID(id string) string {
	id = strings.TrimSpace(id)
	id = strings.TrimSpace(strings.TrimSuffix(strings.TrimPrefix(id, "<"), ">"))
	if at := strings.LastIndexByte(id, '@'); at >= 0 {
		id = id[:at+1] + strings.ToLower(id[at+1:])
	}
	return id
}

// TraceParent is the W3C Trace Context (`traceparent`) of an event with an id about one mail: all events of a mail
// share one trace, and each is a span of its own in it. Like ids it is the same over redelivery.
func TraceParent(mail, event string) string {
	trace := sha256.Sum256([]byte("posthorn trace\x00" + mail))
	span := sha256.Sum256([]byte("posthorn span\x00" + event))
	return "00-" + hex.EncodeToString(trace[:16]) + "-" + hex.EncodeToString(span[:8]) + "-01"
}

// hashToken folds parts into one token of 32 characters (160 bit). Parts are separated by NUL, which none contains.
func hashToken(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return tokenEncoding.EncodeToString(sum[:20])
}
