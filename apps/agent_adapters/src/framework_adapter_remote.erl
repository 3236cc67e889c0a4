%% @doc The carrier of a worker on another machine: the stream that it attached by, in place of a guard's port and a local socket.
%%
%% What its own guard says and is told travels in CONTROL frames (`docs/port_protocol.md', section 5).
-module(framework_adapter_remote).

-export([open/1]).
-export([want/1]).
-export([send/2]).
-export([kill/2]).
-export([signal/2]).
-export([close/1]).

-export_type([remote/0]).

%% Frames taken from the stream before it is asked again.
-define(ACTIVE, 64).

-opaque remote() :: {agent_native:remote(), reference()}.

%% @doc Makes the caller the owner of a stream. Its messages are `{agent_native, Ref, frame, Bin}', `passive' and `closed'.
-spec open(agent_native:remote()) -> {ok, remote(), reference()} | {error, native_down}.
open(Stream) ->
    Ref = make_ref(),
    case agent_native:remote_own(Stream, Ref) of
        ok -> ok = want({Stream, Ref}), {ok, {Stream, Ref}, Ref};
        _ -> {error, native_down}
    end.

%% @doc More frames may come.
-spec want(remote()) -> ok.
want({Stream, _}) ->
    _ = agent_native:remote_want(Stream, ?ACTIVE),
    ok.

%% @doc Sends a frame. `gone': the stream has ended, or its other end does not read.
-spec send(iodata(), remote()) -> ok | gone.
send(Frame, {Stream, _}) ->
    case agent_native:remote_send(Stream, iolist_to_binary(Frame)) of
        ok -> ok;
        _ -> gone
    end.

%% @doc Asks the worker's own guard for the end of the whole tree.
-spec kill(remote(), non_neg_integer()) -> ok | gone.
kill(Remote, GraceMs) ->
    send(framework_adapter_frame:encode(control, port_guard:kill_command(GraceMs)), Remote).

%% @doc Asks the worker's own guard to signal it.
-spec signal(remote(), 1..64) -> ok | gone.
signal(Remote, Signo) ->
    send(framework_adapter_frame:encode(control, port_guard:signal_command(Signo)), Remote).

%% @doc Ends the stream; whoever runs the worker takes it down.
-spec close(none | remote()) -> ok.
close(none) ->
    ok;
close({Stream, _}) ->
    _ = agent_native:remote_close(Stream),
    ok.
