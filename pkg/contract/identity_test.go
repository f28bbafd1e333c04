package contract_test

import (
	"crypto/sha256"
	"regexp"
	"testing"

	"posthorn/pkg/contract"
)

// Keys and ids are stored for ever and make every event unique: these values may never change.
func TestIdentitiesNeverChange(t *testing.T) {
	digest := sha256.Sum256([]byte("Subject: hi\r\n\r\nhello\r\n"))
	mail := contract.MailKey("sales", digest)
	for _, golden := range []struct{ what, got, want string }{
		{"key of a mail", mail, "egrnyf67353yqymsb6k6stqojm6mc56a"},
		{"id of an event", contract.EventID("k", "received", 1), "pq6z5imjrhzidymuxsf6iaib5lgdotw4"},
		{"id of a later event", contract.EventID("k", "revised", 2), "e24vjtcccghynqxkxo4hai5uymy2c347"},
		{
			"id of an opening event", contract.OpeningID("fznrebeyf4laes7urps6lp5vfcne3thq"),
			"ksbwzuuegbq43tpb43bdmrn6qzq7yrqq",
		},
		{
			"key of a Message-ID", contract.MessageIDKey("laskut", "<dsn@Example.ORG>"),
			"t3deydm3cysdw454rqlucdmtm7okgb5p",
		},
	} {
		if golden.got != golden.want {
			t.Errorf("%s is %s, was %s", golden.what, golden.got, golden.want)
		}
		if !contract.ValidToken(golden.got) || len(golden.got) != 32 {
			t.Errorf("%s, %q, is no token of 32 characters", golden.what, golden.got)
		}
	}
}

func TestTheEventsOfAMailShareOneTrace(t *testing.T) {
	first, second := contract.TraceParent("mail", "raw"), contract.TraceParent("mail", "received")
	other := contract.TraceParent("another", "raw")
	for _, parent := range []string{first, second, other} {
		if !regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-01$`).MatchString(parent) {
			t.Errorf("%q is no traceparent", parent)
		}
	}
	if first[:35] != second[:35] || first == second || first[:35] == other[:35] {
		t.Errorf("%s, %s and %s", first, second, other)
	}
}

func TestAMailsKeyTellsSourcesAndBytesApart(t *testing.T) {
	one, other := sha256.Sum256([]byte("one")), sha256.Sum256([]byte("other"))
	keys := map[string]bool{
		contract.MailKey("sales", one): true, contract.MailKey("sales", other): true,
		contract.MailKey("support", one): true, contract.MailKey("support", other): true,
	}
	if len(keys) != 4 {
		t.Errorf("4 mails have %d keys", len(keys))
	}
}

func TestAnEventsIDTellsKeyEventAndRevisionApart(t *testing.T) {
	ids := map[string]bool{
		contract.EventID("a", "revised", 1): true, contract.EventID("a", "revised", 2): true,
		contract.EventID("a", "assigned", 1): true, contract.EventID("b", "revised", 1): true,
		contract.OpeningID("a"): true, contract.OpeningID("b"): true,
	}
	if len(ids) != 6 {
		t.Errorf("6 events have %d ids", len(ids))
	}
}

func TestOneMessageIDIsFoundHoweverItIsWritten(t *testing.T) {
	const plain = "8f2c1d7e@kirjasto.example"
	for _, same := range []string{
		"<8f2c1d7e@kirjasto.example>", "  <8f2c1d7e@Kirjasto.EXAMPLE> ", "< 8f2c1d7e@kirjasto.example >", plain,
	} {
		if got := contract.NormalMessageID(same); got != plain {
			t.Errorf("%q becomes %q, want %q", same, got, plain)
		}
		if contract.MessageIDKey("s", same) != contract.MessageIDKey("s", plain) {
			t.Errorf("%q has another key", same)
		}
	}
	for _, different := range []string{"<8F2C1D7E@kirjasto.example>", "<8f2c1d7e@kirjasto.example.org>", "<8f2c1d7e>"} {
		if contract.MessageIDKey("s", different) == contract.MessageIDKey("s", plain) {
			t.Errorf("%q has the same key: only the domain is compared without case", different)
		}
	}
	if contract.MessageIDKey("a", plain) == contract.MessageIDKey("b", plain) {
		t.Error("two sources share the key of a Message-ID")
	}
}

func TestAnEmptyMessageIDMatchesNothing(t *testing.T) {
	for _, empty := range []string{"", " ", "<>", "< >", "\t<>\r\n"} {
		if got := contract.MessageIDKey("s", empty); got != "" {
			t.Errorf("%q has the key %q", empty, got)
		}
	}
	// With an at sign only, the domain may be any case; there is something to compare.
	if contract.NormalMessageID("<A@B@C.Example>") != "A@B@c.example" {
		t.Error("the domain begins at the last at sign")
	}
}
