package fault

import (
	"math/rand/v2"
	"time"
)

// Delay is how long to wait before the next try after the attempt-th failure in a row (1, 2, 3 …) of this kind. What
// the other side asked for is honoured; the rest depends on the class, and carries up to 20 % of jitter:
//
//	dns, tcp, tls, protocol   5 s growing to 5 minutes
//	auth                      10 s, 60 s, then 30 minutes: no account is locked by us
//	limit, mailbox, archive   1 minute growing to 30 minutes
//	policy                    15 minutes
//	store, mail               1 s growing to 30 s
func Delay(err error, attempt int) time.Duration {
	e := As(err)
	if e == nil {
		return 0
	}
	if e.RetryAfter > 0 {
		return min(e.RetryAfter, 6*time.Hour)
	}
	attempt = max(attempt, 1)
	switch e.Code.Class() {
	case "auth":
		return jitter([]time.Duration{10 * time.Second, time.Minute, 30 * time.Minute}[min(attempt, 3)-1])
	case "limit", "mailbox", "archive":
		return grow(time.Minute, 30*time.Minute, attempt)
	case "policy":
		return jitter(15 * time.Minute)
	case "store", "mail":
		return grow(time.Second, 30*time.Second, attempt)
	default:
		return grow(5*time.Second, 5*time.Minute, attempt)
	}
}

// grow doubles from least to most.
func grow(least, most time.Duration, attempt int) time.Duration {
	d := most
	if shift := attempt - 1; shift < 16 && least<<shift < most {
		d = least << shift
	}
	return jitter(d)
}

// jitter takes away up to a fifth, so that sources that failed together do not come back together.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/5+1)) //nolint:gosec // spreading load needs no secrecy
}
