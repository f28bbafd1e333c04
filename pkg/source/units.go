package source

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written as `25MB`. Units are powers of 1024.
type Size int64

// Units of [Size].
const (
	KB Size = 1 << 10
	MB Size = 1 << 20
	GB Size = 1 << 30
)

var sizeUnits = []struct {
	name string
	size Size
}{{"GB", GB}, {"MB", MB}, {"KB", KB}, {"B", 1}}

// ParseSize reads a size such as 25MB, 512KB, 1GB or 4096B; upper or lower case, with or without a blank before the
// unit.
func ParseSize(text string) (Size, error) {
	wrong := fmt.Errorf("%q is no size: write it like 25MB", text)
	compact := strings.ToUpper(strings.TrimSpace(text))
	for _, unit := range sizeUnits {
		number, ok := strings.CutSuffix(compact, unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil || n < 0 || n > int64(1<<62)/int64(unit.size) {
			return 0, wrong
		}
		return Size(n) * unit.size, nil
	}
	return 0, wrong
}

// String writes the size in the largest unit that divides it.
func (s Size) String() string {
	for _, unit := range sizeUnits {
		if s != 0 && s%unit.size == 0 {
			return strconv.FormatInt(int64(s/unit.size), 10) + unit.name
		}
	}
	return "0B"
}

// MarshalText is String.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is [ParseSize].
func (s *Size) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSize(string(text))
	return err
}

// Duration is a time.Duration, written as `90s`.
type Duration time.Duration

// ParseDuration reads a duration such as 90s, 5m or 1h30m.
func ParseDuration(text string) (Duration, error) {
	d, err := time.ParseDuration(strings.TrimSpace(text))
	if err != nil {
		return 0, fmt.Errorf("%q is no duration: write it like 90s", text)
	}
	return Duration(d), nil
}

// String writes whole seconds as `90s`, and everything else as time.Duration does.
func (d Duration) String() string {
	if d%Duration(time.Second) == 0 {
		return strconv.FormatInt(int64(d/Duration(time.Second)), 10) + "s"
	}
	return time.Duration(d).String()
}

// MarshalText is String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is [ParseDuration].
func (d *Duration) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDuration(string(text))
	return err
}
