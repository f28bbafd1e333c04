package parser

import (
	"context"

	"posthorn/pkg/contract"
)

// Part is the part of a mail with an index that the mail's event lists among its attachments: its description and its
// bytes, transfer decoding done and nothing else. ok is false when the mail has no such part. Errors are those of
// [Read].
func Part(ctx context.Context, open Opener, size int64, index int, limits Limits) (
	a contract.Attachment, content []byte, ok bool, err error,
) {
	list, err := read(ctx, open, size, limits)
	if err != nil || list == nil {
		return contract.Attachment{}, nil, false, err
	}
	if index < 0 || index >= len(list.leaves) {
		return contract.Attachment{}, nil, false, nil
	}
	l := list.leaves[index]
	return l.attachment(), l.content(), true, nil
}
