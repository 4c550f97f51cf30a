/* The JDBC driver of PostgreSQL. */

import java.sql.*;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeoutException;
import org.postgresql.PGConnection;
import org.postgresql.util.PGobject;
import org.postgresql.util.PSQLException;
import org.postgresql.util.ServerErrorMessage;

public class Jdbc {
	static final String NS = "package_7344545d87__c";
	static final double PATIENCE = Double.parseDouble(System.getenv().getOrDefault("CLIENT_PATIENCE", "60"));
	static final String WAITS =
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = ? AND state = 'active' AND wait_event_type = 'Extension'";

	static void ok(boolean good, String name) {
		System.out.println((good ? "ok" : "not ok") + " - " + name);
	}

	static void equal(Object got, Object expected, String name) {
		boolean good = got == null ? expected == null : got.equals(expected);
		ok(good, name);
		if (!good)
			System.out.println("got " + got + ", expected " + expected);
	}

	static Connection connect() throws SQLException {
		String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
		return DriverManager.getConnection(url, System.getenv("PGUSER"), null);
	}

	static Object value(Connection c, String sql, Object... parameters) throws SQLException {
		try (PreparedStatement s = c.prepareStatement(sql)) {
			for (int i = 0; i < parameters.length; i++)
				s.setObject(i + 1, parameters[i]);
			try (ResultSet r = s.executeQuery()) {
				r.next();
				return r.getObject(1);
			}
		}
	}

	/* Polls until it is true, or has taken too long. */
	static void waitUntil(Callable<Boolean> condition) throws Exception {
		long deadline = System.nanoTime() + (long) (PATIENCE * 1e9);
		while (!condition.call()) {
			if (System.nanoTime() > deadline)
				throw new TimeoutException("a condition did not come true");
			Thread.sleep(10);
		}
	}

	static String sqlstate(Connection c, String sql, Object... parameters) {
		try {
			return "none: " + value(c, sql, parameters);
		} catch (SQLException e) {
			return e.getSQLState();
		}
	}

	static long enqueue(Connection c, String flow, String params) throws SQLException {
		try (PreparedStatement s = c.prepareStatement("SELECT feishu.enqueue_flow(?, ?, params => ?::jsonb)")) {
			s.setString(1, NS);
			s.setString(2, flow);
			s.setString(3, params);
			try (ResultSet r = s.executeQuery()) {
				r.next();
				return r.getLong(1);
			}
		}
	}

	static List<Long> enqueueAll(Connection c, String flow, String... params) throws SQLException {
		List<Long> ids = new ArrayList<>();
		try (PreparedStatement s = c.prepareStatement(
				"SELECT feishu.enqueue_flow(?, ?, params => p::jsonb) FROM unnest(?) AS p")) {
			s.setString(1, NS);
			s.setString(2, flow);
			s.setArray(3, c.createArrayOf("text", params));
			try (ResultSet r = s.executeQuery()) {
				while (r.next())
					ids.add(r.getLong(1));
			}
		}
		return ids;
	}

	public static void main(String[] arguments) throws Exception {
		Connection c = connect();

		/* The transaction of the order queues its flow. */
		c.setAutoCommit(false);
		long order;
		try (PreparedStatement s = c.prepareStatement("INSERT INTO orders (item) VALUES (?)", Statement.RETURN_GENERATED_KEYS)) {
			s.setString(1, "desk");
			s.executeUpdate();
			try (ResultSet r = s.getGeneratedKeys()) {
				r.next();
				order = r.getLong("id");
			}
		}
		long flow = enqueue(c, "committed", "{\"order\": " + order + "}");
		c.commit();
		equal(value(c, "SELECT max(id) FROM orders"), order, "getGeneratedKeys() has the id of the order");
		c.commit();	/* wait_flow sees what was committed before its transaction */
		c.setAutoCommit(true);
		String answer = value(c, "SELECT feishu.wait_flow(?, ?::interval)", flow, PATIENCE + " s").toString();
		ok(answer.contains("\"code\": 0"), "a flow that was queued with its order is sent");

		/* A string is a varchar for the driver: it wants a cast, or an object of the type. */
		equal(sqlstate(c, "SELECT feishu.execute_flow(?, ?, params => ?)", NS, "flow", "{}"), "42883", "a String is no jsonb");
		long big = Long.MAX_VALUE;
		PGobject params = new PGobject();
		params.setType("jsonb");
		params.setValue("{\"total\": " + big + ", \"text\": \"桌子\"}");
		try (PreparedStatement s = c.prepareStatement("SELECT (p ->> 'total')::bigint, p ->> 'text', p ->> 'none' "
				+ "FROM feishu.out_params(feishu.execute_flow(?, ?, ?::jsonb, ?, ?, ?, ?::jsonb, ?, ?::interval)) AS p")) {
			s.setString(1, NS);
			s.setString(2, "echoParams");
			s.setNull(3, Types.VARCHAR);
			s.setObject(4, params);
			s.setBoolean(5, false);
			s.setNull(6, Types.VARCHAR);
			s.setString(7, "[\"a\"]");
			s.setString(8, "feishu");
			s.setString(9, PATIENCE + " s");
			for (int i = 0; i < 8; i++) {	/* from the fifth on it is prepared on the server */
				try (ResultSet r = s.executeQuery()) {
					r.next();
					if (i < 7)
						continue;
					equal(r.getLong(1), big, "an integer of 64 bits keeps its digits");
					equal(r.getString(2), "桌子", "text is what it was");
					equal(r.getString(3), null, "NULL comes back as null");
				}
			}
		}
		equal(value(c, "SELECT feishu.out_params(?::jsonb)", (Object) null), null, "so does NULL for jsonb");
		equal(((PGobject) value(c, "SELECT feishu.execute_flow(?, ?)", NS, "flow")).getType(), "jsonb", "an answer is a PGobject");
		java.time.OffsetDateTime runAt = java.time.OffsetDateTime.parse("2099-01-02T03:04:05.678901Z");
		long later = (Long) value(c, "SELECT feishu.enqueue_flow(?, ?, run_at => ?)", NS, "later", runAt);
		equal(((Timestamp) value(c, "SELECT run_at FROM feishu.flows WHERE id = ?", later)).toInstant(), runAt.toInstant(), "a time is a time");
		equal(value(c, "SELECT feishu.cancel_flow(?)", later), true, "an id is a long");

		try (CallableStatement s = c.prepareCall("{? = call feishu.enqueue_flow(?, ?)}")) {
			s.registerOutParameter(1, Types.BIGINT);
			s.setString(2, NS);
			s.setString(3, "callable");
			s.execute();
			ok(s.getLong(1) > later, "a CallableStatement");
		}

		/* What went wrong. */
		int pid = ((PGConnection) c).getBackendPID();
		try {
			value(c, "SELECT feishu.execute_flow(?, ?)", NS, "noScope");
			ok(false, "a refusal is an error");
		} catch (PSQLException e) {
			ServerErrorMessage m = e.getServerErrorMessage();
			equal(e.getSQLState(), "LK403", "the SQLSTATE");
			ok(m.getDetail().contains("code 99991672"), "DETAIL");
			ok(m.getHint().contains("https://"), "HINT");
		}
		ok(c.isValid(5), "the connection lives");
		equal(value(c, "SELECT pg_backend_pid()"), pid, "... and is the same");

		/* Cancel. */
		try (PreparedStatement s = c.prepareStatement("SELECT feishu.execute_flow(?, ?)")) {
			s.setString(1, NS);
			s.setString(2, "hangingFlow");
			s.setQueryTimeout(1);
			s.executeQuery();
			ok(false, "setQueryTimeout() ends a call");
		} catch (SQLException e) {
			equal(e.getSQLState(), "57014", "setQueryTimeout() ends a call");
		}
		Connection watch = connect();
		try (PreparedStatement s = c.prepareStatement("SELECT feishu.execute_flow(?, ?)")) {
			s.setString(1, NS);
			s.setString(2, "hangingFlow");
			Thread thread = new Thread(() -> {
				try {
					waitUntil(() -> (Boolean) value(watch, WAITS, pid));
					s.cancel();
				} catch (Exception e) {
					ok(false, e.toString());
				}
			});
			thread.start();
			try {
				s.executeQuery();
				ok(false, "so does cancel()");
			} catch (SQLException e) {
				equal(e.getSQLState(), "57014", "so does cancel()");
			}
			thread.join();
		}
		equal(value(c, "SELECT pg_backend_pid()"), pid, "... and the connection works");

		/* Rollback. */
		c.setAutoCommit(false);
		enqueue(c, "rolledBack", null);
		c.rollback();
		enqueue(c, "committed", null);
		Savepoint savepoint = c.setSavepoint();
		enqueue(c, "rolledBack", null);
		c.rollback(savepoint);
		c.commit();
		c.setAutoCommit(true);

		/* A batch. */
		try (PreparedStatement s = c.prepareStatement("SELECT feishu.enqueue_flow(?, ?, params => ?::jsonb)")) {
			for (int i = 0; i < 3; i++) {
				s.setString(1, NS);
				s.setString(2, "jdbcBatch");
				s.setString(3, "{\"n\": " + i + "}");
				s.addBatch();
			}
			s.executeBatch();
		}
		equal(value(c, "SELECT count(*) FROM feishu.flows WHERE flow_id = 'jdbcBatch'"), 3L, "a batch queues, but does not tell the ids");
		equal(enqueueAll(c, "jdbcMany", "{\"n\": 1}", "{\"n\": 2}").size(), 2, "many are queued by one statement with an array");
		watch.close();
		c.close();
	}
}
