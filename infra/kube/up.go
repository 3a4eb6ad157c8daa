package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
)

// up runs everything and returns when it is told to stop (nil) or a component ends by itself (an error).
func up(args []string) error {
	// The children's death signal follows the thread that started them: it must live as long as this process.
	runtime.LockOSThread()

	flags := flag.NewFlagSet("up", flag.ExitOnError)
	dirFlag := flags.String("dir", "", "state directory: data, keys, logs and kubeconfigs (created; kept data is used again)")
	port := flags.Int("port", 0, "port of the API server (default: a free one)")
	ignoreStdin := flags.Bool("ignore-stdin", false, "go on when stdin ends")
	_ = flags.Parse(args) // ExitOnError
	if *dirFlag == "" {
		return fmt.Errorf("--dir is required")
	}
	dir, err := filepath.Abs(*dirFlag)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if !*ignoreStdin {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			stop()
		}()
	}
	if err := run(ctx, dir, *port); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func run(ctx context.Context, dir string, port int) error {
	etcd, closeEtcd, err := startEtcd(filepath.Join(dir, "etcd"))
	if err != nil {
		return err
	}
	defer closeEtcd()

	users := newUsers()
	if err := users.writeTokenFile(filepath.Join(dir, tokenFile)); err != nil {
		return err
	}
	if err := ensureSigningKey(filepath.Join(dir, signingKeyFile)); err != nil {
		return err
	}
	if port == 0 {
		if port, err = freePort(); err != nil {
			return err
		}
	}
	api := endpoint{server: fmt.Sprintf("https://127.0.0.1:%d", port), token: users[0].token}
	ended := make(chan error, 2)

	stopAPI, err := start(dir, apiserverName, apiserverArgs(dir, port, etcd), ended)
	if err != nil {
		return err
	}
	defer stopAPI()
	if err := api.waitServing(ctx, filepath.Join(dir, certificateFile), ended); err != nil {
		return err
	}
	if err := api.applyRBAC(ctx); err != nil {
		return err
	}
	for _, user := range users {
		if err := user.writeKubeconfig(dir, api); err != nil {
			return err
		}
	}

	admin := users[0].kubeconfig(dir)
	stopControllers, err := start(dir, controllersName, controllersArgs(dir, admin), ended)
	if err != nil {
		return err
	}
	defer stopControllers()
	if err := api.waitControlled(ctx, ended); err != nil {
		return err
	}

	fmt.Println("ready", admin)
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return err
	}
}

// freePort returns a TCP port of loopback that nobody listens on just now.
func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}
