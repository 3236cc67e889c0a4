%% @doc Looks once a second for waiting tasks whose time has come, and tells whoever subscribed: `{due, [TaskId]}'.
%%
%% The index is the truth; a clock that jumps or a message that is lost costs a second.
-module(store_timer).
-behaviour(gen_server).

%% API
-export([start_link/0]).
-export([subscribe/0]).
-export([look/0]).

%% gen_server
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, format_status/1]).

%% Between two looks, in ms.
-define(POLL_MS, 1000).

-record(timer, {subscriber = none :: none | pid(), ref = none :: none | reference()}).

%% @doc Starts the timer owner.
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc The caller gets `{due, [TaskId]}' from now on, instead of whoever had it.
-spec subscribe() -> ok.
subscribe() ->
    gen_server:call(?MODULE, subscribe).

%% @doc Looks now: whoever was told of many has room for more.
-spec look() -> ok.
look() ->
    gen_server:cast(?MODULE, look).

-spec init([]) -> {ok, #timer{}}.
init([]) ->
    _ = erlang:send_after(?POLL_MS, self(), poll),
    {ok, #timer{}}.

-spec handle_call(subscribe, gen_server:from(), #timer{}) -> {reply, ok, #timer{}}.
handle_call(subscribe, {Pid, _}, S) ->
    {reply, ok, S#timer{subscriber = Pid}}.

-spec handle_cast(term(), #timer{}) -> {noreply, #timer{}}.
handle_cast(look, S) ->
    {noreply, ask(S)};
handle_cast(_, S) ->
    {noreply, S}.

-spec handle_info(term(), #timer{}) -> {noreply, #timer{}}.
handle_info(poll, S) ->
    _ = erlang:send_after(?POLL_MS, self(), poll),
    {noreply, ask(S)};
handle_info({agent_native, Ref, done, [_ | _] = Ids}, S = #timer{ref = Ref, subscriber = Pid}) ->
    Pid ! {due, Ids},
    {noreply, S#timer{ref = none}};
handle_info(_, S) ->
    {noreply, S}.

-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    Status.

%% An answer to an earlier question is not waited for: it would say the same.
-spec ask(#timer{}) -> #timer{}.
ask(S = #timer{subscriber = none}) ->
    S;
ask(S) ->
    Ref = make_ref(),
    case native_subsystem:handle(store) of
        {ok, Store} ->
            _ = agent_native:store_read(Store, Ref, {due, erlang:system_time(millisecond)}),
            S#timer{ref = Ref};
        {error, native_down} ->
            S
    end.
