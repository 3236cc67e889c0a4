%% @doc Whole answers of frameworks, given again: `execution_hints.cache' of a task that a framework would run.
%%
%% An answer belongs to the content of the task, the tenant, the agent as it is now, the executor, its environment's lock and the
%% files of the agent's project. Who asks reads the table himself; this process writes it, and drops what is oldest or over. What is
%% kept lasts as long as the node.
-module(framework_execution_cache).
-behaviour(gen_server).

%% API
-export([start_link/0]).
-export([look/4]).
-export([tool/2]).
-export([keep/2]).

%% gen_server
-export([init/1, handle_call/3, handle_cast/2, format_status/1]).

-export_type([ticket/0]).

%% How long an answer is given again, unless configured, in ms.
-define(TTL_MS, 3600000).
%% Bytes of all answers, unless configured.
-define(MAX_BYTES, 67108864).
%% One over this part of the whole is not kept.
-define(LARGEST_PART, 8).
%% How long the state of an environment and a project is taken as read, in ms.
-define(VERSION_MS, 1000).
%% A project of more files is not looked at, and its answers are not kept.
-define(MAX_FILES, 5000).

-type ticket() :: none
                | {hit, Result :: binary()}
                | {miss, Key :: binary(), Tools :: [binary()]}
                | {effects, Tool :: binary()}.

-record(state, {
    %% In the order of their end.
    order = queue:new() :: queue:queue({EndsMs :: integer(), Key :: binary(), Bytes :: non_neg_integer()}),
    bytes = 0 :: non_neg_integer()
}).

%% @doc Starts the writer.
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc The answer of an equal task, or what is needed to keep this one's.
-spec look(Payload :: term(), Agent :: map(), Executor :: binary(), Tenant :: binary()) -> ticket().
look(_, _, <<"native">>, _) ->
    none;
look(Payload, Agent, Executor, Tenant) ->
    Key = fun(Around) -> agent_native:task_cache_key(Payload, maps:get(tools, Agent, []), Around) end,
    %% Files are looked at for tasks alone that ask for it.
    %% One of the steps around frameworks, which can be switched off.
    case execution_around:effort(Executor) =/= off andalso Key([]) of
        {ok, _, _, _} ->
            case version(Executor, Agent) of
                unknown -> none;
                Version -> found(Key([Tenant, Executor, Version, term_to_binary(maps:remove(payload, Agent), [deterministic])]))
            end;
        Other ->
            found(Other)
    end.

-spec found(false | undefined | {ok, boolean(), binary(), [binary()]} | {error, binary() | native_down}) -> ticket().
found({ok, Read, Key, Tools}) ->
    Now = now_ms(),
    case Read andalso ets:lookup(engine_tables:executions(), Key) of
        [{_, Result, Ends}] when Ends > Now -> {hit, Result};
        _ -> {miss, Key, Tools}
    end;
found({error, Tool}) when is_binary(Tool) ->
    {effects, Tool};
found(_) ->
    none.

%% @doc The task has used a tool: after one that may have an effect, or tells of the moment, its answer is not kept.
-spec tool(Name :: binary(), ticket()) -> ticket().
tool(Name, {miss, _, Tools} = Ticket) ->
    case lists:member(Name, Tools) of
        true -> Ticket;
        false -> {effects, Name}
    end;
tool(_, Ticket) ->
    Ticket.

%% @doc Keeps the recorded answer of a task that succeeded.
-spec keep(Result :: term(), ticket()) -> ok.
keep(Result, {miss, Key, _}) when is_binary(Result) ->
    case byte_size(Result) * ?LARGEST_PART =< max_bytes() of
        true -> gen_server:cast(?MODULE, {keep, Key, binary:copy(Result)});
        false -> ok
    end;
keep(_, _) ->
    ok.

%% ---- what an answer depends on beside the task

-spec version(binary(), map()) -> binary() | unknown.
version(Executor, Agent) ->
    Table = engine_tables:executions(),
    Name = {version, Executor, [maps:get(Key, Agent, <<>>) || Key <- [project, requirements, python]]},
    Now = now_ms(),
    case ets:lookup(Table, Name) of
        [{_, Version, Until}] when Until > Now ->
            Version;
        _ ->
            Version = look_at(Executor, Agent),
            true = ets:insert(Table, {Name, Version, Now + ?VERSION_MS}),
            Version
    end.

-spec look_at(binary(), map()) -> binary() | unknown.
look_at(Executor, Agent) ->
    #{name := Environment} = framework_adapter_lock:of_agent(Executor, Agent),
    Lock = [Environment, framework_adapter_lock:stamp(Environment)],
    try files(maps:get(project, Agent, <<>>)) of
        Files -> crypto:hash(sha256, [Lock, 0, term_to_binary(Files)])
    catch
        throw:too_many_files -> unknown
    end.

%% Every file of a project with its size and time; what Python writes beside them is none of its content.
-spec files(binary()) -> [tuple()].
files(<<>>) ->
    [];
files(Project) ->
    {_, Files} = filelib:fold_files(unicode:characters_to_list(Project), "(?<!\\.pyc)$", true, fun file/2, {0, []}),
    lists:sort(Files).

-spec file(file:filename(), {non_neg_integer(), [tuple()]}) -> {pos_integer(), [tuple()]}.
file(_, {?MAX_FILES, _}) ->
    throw(too_many_files);
file(Name, {N, Files}) ->
    {N + 1, [{Name, filelib:file_size(Name), filelib:last_modified(Name)} | Files]}.

%% ---- the writer

-spec init([]) -> {ok, #state{}}.
init([]) ->
    %% What an earlier writer kept is counted by nobody.
    true = ets:delete_all_objects(engine_tables:executions()),
    {ok, #state{}}.

-spec handle_call(term(), gen_server:from(), #state{}) -> {reply, {error, unknown_call}, #state{}}.
handle_call(_, _From, S) ->
    {reply, {error, unknown_call}, S}.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast({keep, Key, Result}, S = #state{order = Order, bytes = Bytes}) ->
    Ends = now_ms() + agent_config:get([task_cache, ttl_ms], ?TTL_MS),
    Size = byte_size(Result),
    true = ets:insert(engine_tables:executions(), {Key, Result, Ends}),
    {noreply, drop(now_ms(), S#state{order = queue:in({Ends, Key, Size}, Order), bytes = Bytes + Size})};
handle_cast(_, S) ->
    {noreply, S}.

%% A key that was written again stands in the order twice; the older one drops nothing but its bytes.
-spec drop(integer(), #state{}) -> #state{}.
drop(Now, S = #state{order = Order, bytes = Bytes}) ->
    Max = max_bytes(),
    case queue:peek(Order) of
        {value, {Ends, Key, Size}} when Bytes > Max; Ends =< Now ->
            true = ets:match_delete(engine_tables:executions(), {Key, '_', Ends}),
            drop(Now, S#state{order = queue:drop(Order), bytes = Bytes - Size});
        _ ->
            S
    end.

-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    maps:map(fun(state, #state{order = Order, bytes = Bytes}) -> #{answers => queue:len(Order), bytes => Bytes};
                (message, _) -> redacted;
                (_, Other) -> Other
             end, Status).

-spec max_bytes() -> non_neg_integer().
max_bytes() ->
    agent_config:get([task_cache, max_bytes], ?MAX_BYTES).

-spec now_ms() -> integer().
now_ms() ->
    erlang:monotonic_time(millisecond).
