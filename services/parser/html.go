package parser

import (
	"bytes"
	"context"

	"github.com/jhillyerd/enmime/v2"

	"posthorn/pkg/reply"
)

// HTML is the HTML of a mail as it stands in the mail, made UTF-8 (whatever charset the document itself declares);
// ok is false when the mail has none. It is not sanitised: whoever shows it must do that. A mail with several HTML
// parts gives them one after the other. Errors are those of [Read].
func HTML(ctx context.Context, open Opener, size int64, limits Limits) (html []byte, ok bool, err error) {
	list, err := read(ctx, open, size, limits)
	if err != nil || list == nil {
		return nil, false, err
	}
	var out bytes.Buffer
	for _, l := range bodies(list.root, list.leaves, true) {
		source, _ := decodeHTML(l.content(), l.charset())
		l.part.Content = nil
		if ok {
			out.WriteByte('\n')
		}
		ok = true
		out.WriteString(source)
	}
	return out.Bytes(), ok, nil
}

// opened is a mail whose parts can be taken out.
type opened struct {
	root   *enmime.Part
	leaves []*leaf
}

// read opens a mail; nil when it cannot be opened within the limits.
func read(ctx context.Context, open Opener, size int64, limits Limits) (*opened, error) {
	limits = limits.withDefaults()
	s, err := look(ctx, open, size, limits)
	if err != nil || s.over != "" || s.noHeader && s.size-s.offset <= 0 {
		return nil, err
	}
	t, _, err := readTree(ctx, open, &s, reply.ParseHeader(s.header), limits)
	if err != nil || t.root == nil {
		return nil, err
	}
	return &opened{t.root, leaves(t.root)}, nil
}
