package parser

import (
	"cmp"
	"time"
)

// Limits bound what reading one mail may cost. A mail beyond them is not lost: its header fields are taken, its
// `parse.status` is `limits`, and its raw bytes stay where they are.
type Limits struct {
	// Bytes is the size of the largest mail that is read.
	Bytes int64
	// HeaderBytes and HeaderLines bound each header block, that of the mail and that of every part.
	HeaderBytes int
	HeaderLines int
	// Boundaries is how many different boundaries a mail may declare anywhere.
	Boundaries int
	// Parts is how many lines may be delimiters of those boundaries.
	Parts int
	// Depth is how many multiparts are opened; those beyond are kept as one attachment each. It must stay small: at the
	// end of a mail that closes none of its multiparts, enmime takes twice as long for each that is open.
	Depth int
	// Time is how long one mail may take. It is generous: the other limits keep a mail far below it.
	Time time.Duration
}

// DefaultLimits suit a mail of any honest program.
func DefaultLimits() Limits {
	return Limits{
		Bytes:       160 << 20,
		HeaderBytes: 256 << 10,
		HeaderLines: 2000,
		Boundaries:  256,
		Parts:       1000,
		Depth:       12,
		Time:        30 * time.Second,
	}
}

// withDefaults fills what was left 0.
func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	return Limits{
		Bytes:       cmp.Or(max(l.Bytes, 0), d.Bytes),
		HeaderBytes: cmp.Or(max(l.HeaderBytes, 0), d.HeaderBytes),
		HeaderLines: cmp.Or(max(l.HeaderLines, 0), d.HeaderLines),
		Boundaries:  cmp.Or(max(l.Boundaries, 0), d.Boundaries),
		Parts:       cmp.Or(max(l.Parts, 0), d.Parts),
		Depth:       cmp.Or(max(l.Depth, 0), d.Depth),
		Time:        cmp.Or(max(l.Time, 0), d.Time),
	}
}

// What an event may hold, so that it always stays below 900 KB as JSON. "JSON" bounds count the escaped form, in
// which one byte can become six.
const (
	maxText        = 256 << 10 // bytes of Text
	maxTextJSON    = 320 << 10
	maxReply       = 128 << 10 // bytes of TextReply
	maxReplyJSON   = 160 << 10
	maxSubjectJSON = 4 << 10
	maxNameJSON    = 256
	maxAddressJSON = 400
	maxAddresses   = 100 // each of To and CC
	maxReplyTo     = 10
	maxIDJSON      = 1024
	maxReferences  = 64
	maxInReplyTo   = 16
	maxAttachments = 128
	maxFileJSON    = 512
	maxTypeJSON    = 160
	maxWarnings    = 32
)

// maxHTML is how much HTML is turned into text; the HTML itself is never cut.
const maxHTML = 8 << 20
