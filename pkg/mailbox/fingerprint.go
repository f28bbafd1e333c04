package mailbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
)

// mostFingerprinted is how much of a header block is looked at: whoever reads a header reads at least so much of it.
const mostFingerprinted = 256 << 10

// Fingerprint is a hash over what identifies a mail in its header (Message-ID, Date, From, To, Subject; the whole
// header when none of them is there), indifferent to folding and trailing blanks, so that it stays the same when a
// server renders a header differently. It is compared before a mail is moved or deleted. header is the header block
// with or without the empty line at its end; what follows that line, or the first 256 KB, is not looked at.
func Fingerprint(header []byte) string {
	var identifying, all []string
	header = header[:min(len(header), mostFingerprinted)]
	for _, field := range fields(header) {
		name, value, ok := strings.Cut(field, ":")
		name = strings.ToLower(strings.TrimSpace(name))
		line := name + ":" + strings.Join(strings.Fields(value), " ")
		if !ok {
			line = strings.Join(strings.Fields(field), " ")
		}
		all = append(all, line)
		switch name {
		case "message-id", "date", "from", "to", "subject":
			identifying = append(identifying, line)
		}
	}
	if len(identifying) == 0 {
		identifying = all
	}
	slices.Sort(identifying)
	sum := sha256.Sum256([]byte(strings.Join(identifying, "\n")))
	return hex.EncodeToString(sum[:16])
}

// fields splits a header block into its unfolded fields (RFC 5322 section 2.2.3).
func fields(header []byte) []string {
	var fields []string
	for line := range bytes.SplitSeq(header, []byte("\n")) {
		line = bytes.TrimSuffix(line, []byte("\r"))
		if len(line) == 0 {
			break
		}
		if (line[0] == ' ' || line[0] == '\t') && len(fields) > 0 {
			fields[len(fields)-1] += " " + string(line)
			continue
		}
		fields = append(fields, string(line))
	}
	return fields
}
