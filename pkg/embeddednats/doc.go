// Package embeddednats runs a NATS server with JetStream inside the program, set up so that a stored message is on disk
// before it is acknowledged. Stages talk to it over an in-process connection (package bus); a loopback listener, with
// credentials, lets local subscribers in.
package embeddednats
