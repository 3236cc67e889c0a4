%% @doc Control channel of `port_guard': opening it, its messages (`docs/port_protocol.md', sections 2 and 3).
%%
%% Only the process that opened the port may use it; it never suspends on it.
-module(port_guard).

-export([open/2]).
-export([open/3]).
-export([close/1]).
-export([kill/2]).
-export([signal/2]).
-export([kill_command/1]).
-export([signal_command/1]).
-export([decode/1]).
-export([layers/1]).
-export([cause/1]).

-export_type([message/0, proof/0]).

-type proof() :: namespace | descendants | unconfirmed.
-type message() ::
    {up, #{host_pid := pos_integer(), mode := namespace | plain | run, layers := [binary()], why := binary()}}
    | {exited, #{kind := code | signal, value := byte(), peak_rss := non_neg_integer(), cpu_ms := non_neg_integer()}}
    | {gone, #{proof := proof(), reaped := non_neg_integer(), ms := non_neg_integer(), survivors := [pos_integer()]}}
    | {failed, #{errno := non_neg_integer(), step := binary()}}
    | {log, stdout | stderr, binary()}
    | {stack, binary()}
    | {limit, max_memory | max_processes, Value :: non_neg_integer(), Limit :: non_neg_integer()}
    | {ready, binary()}
    | {unknown, binary()}.

%% @doc Opens `port_guard Mode Args'. The environment of the guard is empty: what the program needs is in `Args'.
-spec open(worker | run, [string() | binary()]) -> port().
open(Mode, Args) ->
    open(Mode, Args, []).

%% @doc The same with secrets, which stand in the guard's environment; `--env-of NAME' hands one on to what it runs.
-spec open(worker | run, [string() | binary()], [{Name :: string(), Value :: binary()}]) -> port().
open(Mode, Args, Secrets) ->
    Given = [{Name, binary_to_list(Value)} || {Name, Value} <- Secrets],
    Scrubbed = [{Name, false} || Entry <- os:getenv(), {Name, _} <- [split_env(Entry)], Name =/= ""],
    erlang:open_port({spawn_executable, executable()}, [
        {packet, 4}, nouse_stdio, binary, exit_status, {busy_limits_msgq, disabled},
        {args, [atom_to_list(Mode) | Args]}, {env, Scrubbed ++ Given}
    ]).

%% @doc Closes the port: the guard sees its end and takes the whole tree down. A port that has closed already is fine.
-spec close(none | port()) -> ok.
close(none) ->
    ok;
close(Port) ->
    try erlang:port_close(Port) of
        true -> ok
    catch
        error:badarg -> ok
    end.

%% @doc Asks for the end of the whole tree: TERM, `GraceMs', KILL, proof.
-spec kill(port(), non_neg_integer()) -> ok | gone.
kill(Port, GraceMs) ->
    command(Port, kill_command(GraceMs)).

%% @doc Signals the worker itself.
-spec signal(port(), 1..64) -> ok | gone.
signal(Port, Signo) ->
    command(Port, signal_command(Signo)).

%% @doc KILL as a control message.
-spec kill_command(non_neg_integer()) -> binary().
kill_command(GraceMs) ->
    <<1, GraceMs:32>>.

%% @doc SIGNAL as a control message.
-spec signal_command(1..64) -> binary().
signal_command(Signo) ->
    <<2, Signo>>.

-spec command(port(), binary()) -> ok | gone.
command(Port, Frame) ->
    try erlang:port_command(Port, Frame, [nosuspend]) of
        true -> ok;
        %% The guard's pipe holds 64 KiB and our frames are 5 bytes: a full one is a stopped guard.
        false -> gone
    catch
        error:badarg -> gone
    end.

%% @doc Reads one control message.
-spec decode(binary()) -> message().
decode(<<16, Pid:32, Mode, Layers:16, Why/binary>>) when Pid > 0 ->
    {up, #{host_pid => Pid, mode => mode(Mode), layers => layers(Layers), why => Why}};
decode(<<17, Kind, Value, PeakRss:64, CpuMs:64>>) ->
    {exited, #{kind => case Kind of 0 -> code; _ -> signal end, value => Value, peak_rss => PeakRss, cpu_ms => CpuMs}};
decode(<<18, Proof, Reaped:32, Ms:32, Count:16, Pids:(Count * 4)/binary>>) ->
    {gone, #{proof => proof(Proof), reaped => Reaped, ms => Ms, survivors => [P || <<P:32>> <= Pids]}};
decode(<<19, Errno:32, Step/binary>>) ->
    {failed, #{errno => Errno, step => Step}};
decode(<<20, Fd, Line/binary>>) ->
    {log, case Fd of 2 -> stderr; _ -> stdout end, Line};
decode(<<21, Text/binary>>) ->
    {stack, Text};
decode(<<22, Which, Value:64, Limit:64>>) ->
    {limit, case Which of 1 -> max_memory; _ -> max_processes end, Value, Limit};
decode(<<23, Text/binary>>) ->
    {ready, Text};
decode(Other) ->
    {unknown, binary:part(Other, 0, min(16, byte_size(Other)))}.

-spec mode(byte()) -> namespace | plain | run.
mode(1) -> namespace;
mode(2) -> plain;
mode(_) -> run.

-spec proof(byte()) -> proof().
proof(1) -> namespace;
proof(2) -> descendants;
proof(_) -> unconfirmed.

%% @doc Names of the active isolation layers.
-spec layers(non_neg_integer()) -> [binary()].
layers(Bits) ->
    Names = [<<"user_namespace">>, <<"pid_namespace">>, <<"own_proc">>, <<"landlock_fs">>, <<"landlock_net">>,
             <<"no_new_privs">>, <<"capabilities_dropped">>, <<"rlimits">>, <<"oom_score">>, <<"seccomp">>],
    [Name || {Bit, Name} <- lists:zip(lists:seq(0, length(Names) - 1), Names), Bits band (1 bsl Bit) =/= 0].

%% @doc How a worker ended, in words for an operator.
-spec cause(message()) -> binary().
cause({exited, #{kind := signal, value := Signal}}) ->
    iolist_to_binary(io_lib:format("ended by signal ~b", [Signal]));
cause({exited, #{value := Code}}) ->
    iolist_to_binary(io_lib:format("exited with code ~b", [Code]));
cause({failed, #{errno := Errno, step := Step}}) ->
    iolist_to_binary(io_lib:format("start failed at ~ts (errno ~b)", [Step, Errno]));
cause({limit, max_memory, Value, Limit}) ->
    iolist_to_binary(io_lib:format("max_memory exceeded: ~b of ~b", [Value, Limit]));
cause({limit, max_processes, Value, Limit}) ->
    iolist_to_binary(io_lib:format("its tree had ~b processes, [workers] max_processes allows ~b", [Value, Limit]));
cause(_) ->
    <<"ended">>.

-spec split_env(string()) -> {string(), string()}.
split_env(Entry) ->
    %% A name may begin with "=" on other systems only; the first "=" ends it here.
    case string:split(Entry, "=") of
        [Name, Value] -> {Name, Value};
        [Name] -> {Name, ""}
    end.

-spec executable() -> file:filename().
executable() ->
    filename:join([code:priv_dir(agent_native), "bin", "port_guard"]).
