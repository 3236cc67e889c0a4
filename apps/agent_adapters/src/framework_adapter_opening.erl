%% @doc Opens a worker on this machine: a guard, and the socket that the guard hands on to the worker.
-module(framework_adapter_opening).

-export([open/4]).
-export([more/1]).

-export_type([opened/0]).

%% The guard connects at once; this is for a machine under load.
-define(CONNECT_TIMEOUT_MS, 5000).
%% A worker that does not read for so long loses its channel.
-define(SEND_TIMEOUT_MS, 1000).
-define(MAX_FRAME_BYTES, 16777216).
%% Frames taken from the socket before it is asked again.
-define(ACTIVE, 64).

-type opened() :: #{port := none | port(), guard_pid := non_neg_integer(), socket := none | gen_tcp:socket()}.
%% What is there, also where the opening failed in its middle.

%% @doc Starts the guard of a worker and waits for its connection.
-spec open(binary(), map(), binary(), file:filename()) -> {ok, opened()} | {error, binary(), opened()}.
open(Id, Agent, Environment, Dir) ->
    Data = filename:join(framework_adapter_env:runtime_dir(), "d-" ++ binary_to_list(Id)),
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    _ = file:delete(Data),
    case gen_tcp:listen(0, [{ifaddr, {local, Data}}, binary, {packet, 4}, {packet_size, ?MAX_FRAME_BYTES},
                            {active, false}, {backlog, 1}, {send_timeout, ?SEND_TIMEOUT_MS},
                            {send_timeout_close, true}]) of
        {ok, Listen} ->
            Args = framework_adapter_env:worker_args(#{
                environment => Environment, worker_id => Id, data => Data, dir => Dir,
                zygote => framework_adapter_zygote:socket(Environment),
                project => framework_adapter_env:project(Agent)}),
            Port = port_guard:open(worker, Args),
            GuardPid = case erlang:port_info(Port, os_pid) of {os_pid, P} -> P; undefined -> 0 end,
            Accepted = gen_tcp:accept(Listen, ?CONNECT_TIMEOUT_MS),
            ok = gen_tcp:close(Listen),
            _ = file:delete(Data),
            accepted(Accepted, #{port => Port, guard_pid => GuardPid, socket => none});
        {error, Reason} ->
            {error, text("cannot listen for the worker: ~0p", Reason), #{port => none, guard_pid => 0, socket => none}}
    end.

%% @doc Asks the socket for more frames.
-spec more(gen_tcp:socket()) -> ok.
more(Socket) ->
    _ = inet:setopts(Socket, [{active, ?ACTIVE}]),
    ok.

%% Only the guard that we started may be at the other end (SO_PEERCRED is option 17 of level SOL_SOCKET, 1).
-spec accepted({ok, gen_tcp:socket()} | {error, term()}, opened()) -> {ok, opened()} | {error, binary(), opened()}.
accepted({ok, Socket}, Opened = #{guard_pid := GuardPid}) ->
    case inet:getopts(Socket, [{raw, 1, 17, 12}]) of
        {ok, [{raw, 1, 17, <<GuardPid:32/native, _/binary>>}]} ->
            ok = inet:setopts(Socket, [{active, ?ACTIVE}]),
            {ok, Opened#{socket := Socket}};
        _ ->
            _ = gen_tcp:close(Socket),
            {error, <<"a stranger connected to the worker's socket">>, Opened}
    end;
accepted({error, Reason}, Opened) ->
    {error, text("the guard did not connect: ~0p", Reason), Opened}.

-spec text(string(), term()) -> binary().
text(Format, Reason) ->
    iolist_to_binary(io_lib:format(Format, [Reason])).
