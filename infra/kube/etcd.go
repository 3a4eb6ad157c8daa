package main

import (
	"fmt"
	"net/url"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// startEtcd runs etcd inside this process, on free loopback ports, and returns its client URL and what closes it.
func startEtcd(dir string) (string, func(), error) {
	config := embed.NewConfig()
	config.Dir = dir
	config.LogLevel = "fatal" // closing logs several harmless errors
	// A killed process loses nothing by this, only a crashed machine does; and it halves the time to be ready.
	config.UnsafeNoFsync = true
	client, err := loopbackURL()
	if err != nil {
		return "", nil, err
	}
	peer, err := loopbackURL()
	if err != nil {
		return "", nil, err
	}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)

	server, err := embed.StartEtcd(config)
	if err != nil {
		return "", nil, fmt.Errorf("etcd: %w", err)
	}
	select {
	case <-server.Server.ReadyNotify():
		return client.String(), server.Close, nil
	case err := <-server.Err():
		server.Close()
		return "", nil, fmt.Errorf("etcd: %w", err)
	case <-time.After(30 * time.Second):
		server.Close()
		return "", nil, fmt.Errorf("etcd was not ready after 30 s")
	}
}

func loopbackURL() (url.URL, error) {
	port, err := freePort()
	return url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", port)}, err
}
