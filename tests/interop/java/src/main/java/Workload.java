import io.spiffe.bundle.x509bundle.X509BundleSet;
import io.spiffe.provider.SpiffeSslContextFactory;
import io.spiffe.provider.SpiffeSslContextFactory.SslContextOptions;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.svid.x509svid.X509SvidValidator;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.DefaultX509Source;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import io.spiffe.workloadapi.X509Source;
import java.security.cert.X509Certificate;
import java.util.HashSet;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;

/**
 * Drives a Workload API with java-spiffe, as a Java workload would; prints one JSON line per observation.
 *
 * <pre>
 * Workload unix:/path watch 3
 * Workload unix:/path mtls 20
 * Workload unix:/path jwt AUDIENCE
 * </pre>
 */
public final class Workload {
  private static final long PATIENCE_SECONDS = 120;

  public static void main(String[] arguments) throws Exception {
    String address = arguments[0];
    switch (arguments[1]) {
      case "watch" -> watch(address, Integer.parseInt(arguments[2]));
      case "mtls" -> mtls(address, Integer.parseInt(arguments[2]));
      case "jwt" -> jwt(address, arguments[2]);
      default -> throw new IllegalArgumentException(arguments[1] + " is none of watch, mtls, jwt");
    }
    // The library's threads are no daemons.
    System.exit(0);
  }

  private static WorkloadApiClient client(String address) throws Exception {
    return DefaultWorkloadApiClient.newClient(
        DefaultWorkloadApiClient.ClientOptions.builder().spiffeSocketPath(address).build());
  }

  private static void watch(String address, int updates) throws Exception {
    BlockingQueue<X509Context> news = new LinkedBlockingQueue<>();
    client(address)
        .watchX509Context(
            new Watcher<>() {
              @Override
              public void onUpdate(X509Context context) {
                news.add(context);
              }

              @Override
              public void onError(Throwable error) {
                System.err.println(error);
              }
            });
    for (int left = updates; left > 0; left--) {
      X509Context context = news.poll(PATIENCE_SECONDS, TimeUnit.SECONDS);
      if (context == null) {
        throw new IllegalStateException("no update came");
      }
      X509Svid svid = context.getDefaultSvid();
      X509BundleSet bundles = context.getX509BundleSet();
      X509SvidValidator.verifyChain(svid.getChain(), bundles);
      X509Certificate leaf = svid.getLeaf();
      System.out.printf(
          "{\"event\":\"update\",\"id\":\"%s\",\"serial\":\"%x\",\"not_after\":%d,\"seen\":%d}%n",
          svid.getSpiffeId(),
          leaf.getSerialNumber(),
          leaf.getNotAfter().getTime() / 1000,
          System.currentTimeMillis());
    }
  }

  /** Keeps a TLS server and dials it over and over, both from one X509Source, while SVIDs rotate below them. */
  private static void mtls(String address, int seconds) throws Exception {
    X509Source source =
        DefaultX509Source.newSource(
            DefaultX509Source.X509SourceOptions.builder().spiffeSocketPath(address).build());
    SSLContext context =
        SpiffeSslContextFactory.getSslContext(
            SslContextOptions.builder()
                .x509Source(source)
                .acceptedSpiffeIdsSupplier(() -> Set.of(source.getX509Svid().getSpiffeId()))
                .build());
    SSLServerSocket listener =
        (SSLServerSocket) context.getServerSocketFactory().createServerSocket(0, 50, java.net.InetAddress.getLoopbackAddress());
    listener.setNeedClientAuth(true);
    Set<String> serials = new HashSet<>();
    int handshakes = 0;
    long end = System.currentTimeMillis() + seconds * 1000L;
    while (System.currentTimeMillis() < end) {
      dial(context, listener);
      handshakes++;
      serials.add(source.getX509Svid().getLeaf().getSerialNumber().toString(16));
      Thread.sleep(50);
    }
    System.out.printf(
        "{\"event\":\"mtls\",\"id\":\"%s\",\"handshakes\":%d,\"svids\":%d}%n",
        source.getX509Svid().getSpiffeId(), handshakes, serials.size());
  }

  private static void dial(SSLContext context, SSLServerSocket listener) throws Exception {
    Thread server =
        new Thread(
            () -> {
              try (SSLSocket accepted = (SSLSocket) listener.accept()) {
                accepted.getOutputStream().write(accepted.getInputStream().read());
              } catch (java.io.IOException error) {
                System.err.println(error);
              }
            });
    server.start();
    try (SSLSocket socket =
        (SSLSocket) context.getSocketFactory().createSocket(listener.getInetAddress(), listener.getLocalPort())) {
      socket.getOutputStream().write('x');
      if (socket.getInputStream().read() != 'x') {
        throw new IllegalStateException("the peer did not answer");
      }
    }
    server.join();
  }

  private static void jwt(String address, String audience) throws Exception {
    try (WorkloadApiClient client = client(address)) {
      JwtSvid svid = client.fetchJwtSvid(audience);
      JwtSvid local = JwtSvid.parseAndValidate(svid.getToken(), client.fetchJwtBundles(), Set.of(audience));
      JwtSvid remote = client.validateJwtSvid(svid.getToken(), audience);
      if (!local.getSpiffeId().equals(remote.getSpiffeId())) {
        throw new IllegalStateException("the agent and the bundle say different things of one token");
      }
      System.out.printf(
          "{\"event\":\"jwt\",\"id\":\"%s\",\"audience\":[\"%s\"]}%n",
          local.getSpiffeId(), String.join("\",\"", local.getAudience()));
    }
  }
}
