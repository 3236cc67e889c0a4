%% @doc What a guard has reported of its worker, and what it says of the worker's end. Pure.
-module(framework_adapter_report).

-export([new/0]).
-export([add/2]).
-export([proof/1]).
-export([cause/1]).
-export([detail/1]).
-export([lost/5]).
-export([format/1]).

-export_type([report/0]).

-opaque report() :: #{up => map(), stack => binary(), limit => {max_memory | max_processes, non_neg_integer(), non_neg_integer()},
                      exited => map(), peak_rss => non_neg_integer(), cpu_ms => non_neg_integer(), gone => map()}.

%% @doc Nothing was reported.
-spec new() -> report().
new() ->
    #{}.

%% @doc Keeps a message of the guard.
-spec add(port_guard:message(), report()) -> report().
add({up, Up}, R) -> R#{up => Up};
add({stack, Text}, R) -> R#{stack => <<(maps:get(stack, R, <<>>))/binary, Text/binary>>};
add({limit, Which, Value, Limit}, R) -> R#{limit => {Which, Value, Limit}};
add({exited, #{peak_rss := Rss, cpu_ms := Cpu} = Exited}, R) -> R#{exited => Exited, peak_rss => Rss, cpu_ms => Cpu};
add({gone, Gone}, R) -> R#{gone => Gone};
add(_, R) -> R.

%% @doc The proof that everything is dead, if it has come.
-spec proof(report()) -> {ok, map()} | error.
proof(R) ->
    maps:find(gone, R).

%% @doc Why the worker ended: each limit of the guard's has a reason of its own.
-spec cause(report()) -> worker_oom | worker_process_limit | worker_crashed.
cause(#{limit := {max_memory, _, _}}) -> worker_oom;
cause(#{limit := {max_processes, _, _}}) -> worker_process_limit;
cause(_) -> worker_crashed.

%% @doc The same in words.
-spec detail(report()) -> binary().
detail(#{limit := {Which, Value, Limit}}) -> port_guard:cause({limit, Which, Value, Limit});
detail(#{exited := Exited}) -> port_guard:cause({exited, Exited});
detail(_) -> <<"the worker closed its channel">>.

%% @doc What the owner of the lease hears of a worker that was lost.
-spec lost({atom(), iodata()}, port_guard:proof(), non_neg_integer(), [binary()], report()) -> map().
lost({Cause, Detail}, Proof, HostPid, Log, R) ->
    #{cause => Cause, detail => iolist_to_binary(Detail), metadata => limit(R), proof => Proof, host_pid => HostPid,
      stack => maps:get(stack, R, <<>>), log => lists:reverse(Log),
      peak_rss => maps:get(peak_rss, R, 0), cpu_ms => maps:get(cpu_ms, R, 0)}.

%% Which limit of the guard's was passed, for programs.
-spec limit(report()) -> #{binary() => binary()}.
limit(#{limit := {Which, Value, Limit}}) ->
    #{<<"key">> => <<"workers.", (atom_to_binary(Which))/binary>>, <<"limit">> => integer_to_binary(Limit),
      <<"value">> => integer_to_binary(Value)};
limit(_) ->
    #{}.

%% @doc Without what may hold a prompt.
-spec format(report()) -> report().
format(R) ->
    maps:without([stack], R).
