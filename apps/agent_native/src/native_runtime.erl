%% @doc Owns the tokio runtime. Whoever stands on it monitors this process and starts again when it does.
-module(native_runtime).
-behaviour(gen_server).

%% API
-export([start_link/0]).
-export([runtime/0]).

%% gen_server
-export([init/1, handle_call/3, handle_cast/2, terminate/2, format_status/1]).

-record(runtime, {handle :: none | agent_native:runtime()}).

%% @doc Starts the runtime. Under `AGENT_SKIP_NIF=1' the process runs without one.
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc The running runtime.
-spec runtime() -> {ok, agent_native:runtime()} | {error, native_down}.
runtime() ->
    try gen_server:call(?MODULE, runtime)
    catch exit:_ -> {error, native_down}
    end.

-spec init([]) -> {ok, #runtime{}} | {stop, term()}.
init([]) ->
    process_flag(trap_exit, true),
    Options = case agent_config:get([server, native_threads], 0) of 0 -> #{}; N -> #{threads => N} end,
    case agent_native:runtime_start(Options) of
        {ok, Handle} -> {ok, #runtime{handle = Handle}};
        {error, native_down} -> {ok, #runtime{handle = none}};
        {error, Error} -> {stop, Error}
    end.

-spec handle_call(runtime, gen_server:from(), #runtime{}) ->
    {reply, {ok, agent_native:runtime()} | {error, native_down}, #runtime{}}.
handle_call(runtime, _From, S = #runtime{handle = none}) ->
    {reply, {error, native_down}, S};
handle_call(runtime, _From, S = #runtime{handle = Handle}) ->
    {reply, {ok, Handle}, S}.

-spec handle_cast(term(), #runtime{}) -> {noreply, #runtime{}}.
handle_cast(_, S) ->
    {noreply, S}.

-spec terminate(term(), #runtime{}) -> ok.
terminate(_Reason, #runtime{handle = none}) ->
    ok;
terminate(_Reason, #runtime{handle = Handle}) ->
    _ = agent_native:runtime_stop(Handle),
    ok.

-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    Status.
